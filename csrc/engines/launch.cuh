// How a kernel is launched: through cudaLaunchKernelEx, which is ordinary C++, so that the tests
// can compile the same source for the host. Blocks loop over what the grid does not reach.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "simd/macros.h"

// The tests lower it, so that the loops over what a grid does not reach are run.
#ifndef FASTVI_MAX_GRID
#define FASTVI_MAX_GRID 2147483647
#endif

namespace fastvi {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;

// ---- launches that follow one another in a call -------------------------------------------------
// Where the card can (from compute capability 9.0 on), the blocks of a launch that reads what the
// one before it writes take their places while that one still runs. Its threads wait for its end
// before they touch memory, all of them, and none leaves without. The one before says at once that
// it may be followed, and another library's launch that follows in its place waits as well, or was
// not launched so. What most often has no other of its call behind it does not say so.
__device__ __forceinline__ void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void may_be_followed() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether the code of the kernel that this card runs is of those that wait. A card may run code for
// an older one.
template <auto kernel>
bool can_wait() {
  enum Answer : signed char { unknown, no, yes };
  static std::array<std::atomic<Answer>, 64> of_device;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= static_cast<int>(of_device.size())) {
    cudaGetLastError();
    return false;
  }
  std::atomic<Answer>& answer = of_device[static_cast<size_t>(device)];
  if (answer == unknown) {
    cudaFuncAttributes attributes = {};
    const bool known = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
    if (!known) cudaGetLastError();
    answer = known && attributes.ptxVersion >= 90 ? yes : no;
  }
  return answer == yes;
}

// ---- launches -----------------------------------------------------------------------------------
template <class... Params, class... Args>
const char* launch_kernel(bool early, void (*kernel)(Params...), int64_t blocks, void* stream,
                          const Args&... args) {
  if (blocks == 0) return nullptr;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(min_i64(blocks, FASTVI_MAX_GRID)));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // Reported here, so not left for the next caller to find.
  return cudaGetErrorString(error);
}

// `blocks` blocks of kThreads threads, or as many as a grid holds. Returns nullptr or the error.
template <class... Params, class... Args>
const char* launch_blocks(void (*kernel)(Params...), int64_t blocks, void* stream,
                          const Args&... args) {
  return launch_kernel(false, kernel, blocks, stream, args...);
}

// The same, of a kernel that begins with wait_for_launch_before().
template <auto kernel, class... Args>
const char* launch_after(int64_t blocks, void* stream, const Args&... args) {
  return launch_kernel(can_wait<kernel>(), kernel, blocks, stream, args...);
}

// The blocks of a kernel that the card runs at once. Asked once for each kernel: only the speed
// depends on it.
template <auto kernel>
int64_t resident_blocks() {
  static const int64_t blocks = [] {
    int device = 0, multiprocessors = 0, each = 0;
    const bool known =
        cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ==
            cudaSuccess &&
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0) == cudaSuccess;
    if (!known) cudaGetLastError();
    return known ? static_cast<int64_t>(multiprocessors) * each : FASTVI_MAX_GRID;
  }();
  return blocks;
}

// No more blocks than run at once, for kernels whose blocks loop over their tasks: what a block
// does before its first task is then done once, not once a task.
template <auto kernel, bool waits = false, class... Args>
const char* launch_resident(int64_t blocks, void* stream, const Args&... args) {
  const bool early = waits && can_wait<kernel>();
  return launch_kernel(early, kernel, min_i64(blocks, resident_blocks<kernel>()), stream, args...);
}

}  // namespace fastvi
