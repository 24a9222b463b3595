// Reductions over a group of adjacent threads: `lanes` of them, a power of two up to a warp, or the
// whole block. All lanes get the result. The order is a butterfly, the same for every run.
//
// Every thread of a block calls these together: a shuffle and a barrier wait for all.
#pragma once

#include "engines/launch.cuh"
#include "maths/log_sum_exp.h"

namespace fastvi {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarps = kThreads / kWarp;

// The fewest lanes that give each at most `per_lane` of `count` items; a block where a warp would
// have to do much more.
FASTVI_HD int group_lanes(int64_t count, int64_t per_lane, int64_t longest_for_warp) {
  if (count > longest_for_warp) return kThreads;
  int lanes = 1;
  while (lanes < kWarp && lanes * per_lane < count) lanes *= 2;
  return lanes;
}

template <class S, class Combine>
__device__ __forceinline__ S reduce_group(S x, int lanes, Combine combine) {
  if constexpr (sizeof(S) == 8) {
    // One loop: unrolled, registers would be spilled.
    for (int offset = (lanes < kWarp ? lanes : kWarp) / 2; offset > 0; offset /= 2) {
      x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
    }
    if (lanes <= kWarp) return x;
  } else {
    if (lanes < kWarp) {
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
      }
      return x;
    }
    FASTVI_UNROLL
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
    }
    if (lanes == kWarp) return x;
  }
  __shared__ S of_warp[kWarps];
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = of_warp[threadIdx.x % kWarps];
  __syncthreads();
  for (int offset = kWarps / 2; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

template <class S>
__device__ __forceinline__ S sum_group(S x, int lanes) {
  return reduce_group(x, lanes, [](S a, S b) { return a + b; });
}

template <class S>
__device__ __forceinline__ LogSumExp<S> merge_group(LogSumExp<S> x, int lanes) {
  const S own = x.max;
  x.max = reduce_group(own, lanes, [](S a, S b) { return max_number(a, b); });
  x.sum = sum_group(x.sum * exp_nonpositive(own - x.max), lanes);
  return x;
}

}  // namespace fastvi
