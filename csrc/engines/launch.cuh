// How a kernel is launched: through cudaLaunchKernelEx, which is ordinary C++, so that the tests
// can compile the same source for the host. Blocks loop over what the grid does not reach.
#pragma once

#include <cuda_runtime.h>

#include "simd/macros.h"

// The tests lower it, so that the loops over what a grid does not reach are run.
#ifndef FASTVI_MAX_GRID
#define FASTVI_MAX_GRID 2147483647
#endif

namespace fastvi {

inline constexpr int kWarp = 32;
inline constexpr int kThreads = 256;

// `blocks` blocks of kThreads threads, or as many as a grid holds. Returns nullptr or the error.
template <class... Params, class... Args>
const char* launch_blocks(void (*kernel)(Params...), int64_t blocks, void* stream,
                          const Args&... args) {
  if (blocks == 0) return nullptr;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(min_i64(blocks, FASTVI_MAX_GRID)));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // Reported here, so not left for the next caller to find.
  return cudaGetErrorString(error);
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
template <auto kernel, class... Args>
const char* launch_resident(int64_t blocks, void* stream, const Args&... args) {
  return launch_blocks(kernel, min_i64(blocks, resident_blocks<kernel>()), stream, args...);
}

}  // namespace fastvi
