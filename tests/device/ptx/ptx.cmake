# The PTX that nvcc makes of each op's kernels as C++, and the driver that runs it: see machine.h.
set(ptx ${CMAKE_SOURCE_DIR}/tests/device/ptx)
set(ptx_flags -std=c++20 --fmad=false --expt-relaxed-constexpr -arch=compute_90 -ptx -I${CMAKE_SOURCE_DIR}/csrc
              -I${CMAKE_SOURCE_DIR}/tests/device)
set(ptx_scripts ${ptx}/translate.py ${ptx}/instructions.py ${ptx}/access.py ${ptx}/reader.py)
set(ptx_folder ${CMAKE_BINARY_DIR}/ptx)

function(ptx_translate from to)
  add_custom_command(OUTPUT ${ptx_folder}/${to}_kernels.cpp
                     COMMAND ${CMAKE_COMMAND} -E env PYTHONPATH=${CMAKE_SOURCE_DIR}/tests/device ${Python_EXECUTABLE}
                             -m ptx.translate ${ptx_folder}/${from}.ptx ${ptx_folder}/${to}_kernels.cpp ${ARGN}
                     DEPENDS ${ptx_folder}/${from}.ptx ${ptx_scripts} VERBATIM)
endfunction()

# NAME.ptx, NAME_kernels.cpp from it, and NAME_host.cpp for the launches.
function(ptx_of name source)
  add_custom_command(OUTPUT ${ptx_folder}/${name}.ptx
                     COMMAND ${CMAKE_CUDA_COMPILER} ${ptx_flags} -MD -MF ${ptx_folder}/${name}.d -o ${ptx_folder}/${name}.ptx ${source}
                     DEPENDS ${source} DEPFILE ${ptx_folder}/${name}.d VERBATIM)
  ptx_translate(${name} ${name})
  file(CONFIGURE OUTPUT ${ptx_folder}/${name}_host.cpp CONTENT "#include \"${source}\"\n")
endfunction()

file(MAKE_DIRECTORY ${ptx_folder})
foreach(source ${cuda_sources})
  get_filename_component(name ${source} NAME_WE)
  ptx_of(${name} ${CMAKE_SOURCE_DIR}/${source})
  list(APPEND ptx_kernels ${ptx_folder}/${name}_kernels.cpp)
  list(APPEND ptx_hosts ${ptx_folder}/${name}_host.cpp)
  list(APPEND ptx_texts ${ptx_folder}/${name}.ptx)
endforeach()
ptx_of(planted ${ptx}/planted.cu)
add_custom_target(ptx_texts DEPENDS ${ptx_texts})

# Without optimisation: the compiler takes longer than all that it could save.
function(ptx_library name)
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${ARGN})
  target_include_directories(${name} BEFORE PRIVATE ${ptx} csrc tests/device)
  target_compile_options(${name} PRIVATE -O0 -w -fno-strict-aliasing -fwrapv)
endfunction()
ptx_library(ptx_kernels ${ptx_kernels})
ptx_library(ptx_hosts ${ptx_hosts} ${ptx_folder}/planted_host.cpp ${ptx_folder}/planted_kernels.cpp)

set(ptx_machine_sources ${ptx}/arithmetic.cpp ${ptx}/kernel_table.cpp ${ptx}/machine.cpp ${ptx}/meetings.cpp ${ptx}/memory.cpp)
file(GLOB ptx_cases CONFIGURE_DEPENDS tests/device/cuda_emulation/driver_*.cpp)
add_library(ptx_machine OBJECT EXCLUDE_FROM_ALL ${ptx}/main.cpp ${ptx_machine_sources} ${ptx_cases})
target_include_directories(ptx_machine PRIVATE csrc tests/device tests/device/cuda_emulation)
target_compile_definitions(ptx_machine PRIVATE PTX_KNOWS_ALL_MEMORY FASTVI_DRIVE_PTX)
target_compile_options(ptx_machine PRIVATE -O1 ${FASTVI_STRICT_WARNINGS} -frounding-math)

function(ptx_driver name)
  add_executable(${name} EXCLUDE_FROM_ALL $<TARGET_OBJECTS:ptx_machine> $<TARGET_OBJECTS:ptx_hosts>
                 $<TARGET_OBJECTS:fastvi_cpu_baseline> ${ARGN})
  target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()
ptx_driver(ptx_driver $<TARGET_OBJECTS:ptx_kernels>)

# The real kernels of one op with a barrier less, each of which has to be missed.
foreach(number 0 1)
  set(name bernoulli_log_prob_without_barrier_${number})
  ptx_translate(bernoulli_log_prob_cuda ${name} --without-barrier row_sum_kernel:${number})
  ptx_library(ptx_${name} ${ptx_folder}/${name}_kernels.cpp)
  ptx_driver(ptx_driver_without_barrier_${number} $<TARGET_OBJECTS:ptx_${name}>)
endforeach()

# And the whole extension on the machine: the ops as Python calls them, with the plans of the torch side.
fastvi_extension(_C_ptx ${ptx}/extension.cpp ${ptx_machine_sources} $<TARGET_OBJECTS:ptx_kernels> $<TARGET_OBJECTS:ptx_hosts>)
target_compile_definitions(_C_ptx PRIVATE FASTVI_CUDA_EMULATED)
target_include_directories(_C_ptx PRIVATE tests/device)
target_compile_options(_C_ptx PRIVATE -O1 -frounding-math)
target_link_libraries(_C_ptx PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
set_target_properties(_C_ptx PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/ptx EXCLUDE_FROM_ALL ON)
