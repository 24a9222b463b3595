// The parts of a result that different blocks make are put together by the block that finishes
// last, in the same launch. Which block that is may differ from run to run. What it computes does
// not, because it takes the parts by their number.
#pragma once

#include <map>
#include <mutex>

#include "engines/launch.cuh"

namespace fastvi {
namespace {

// Launches on one stream follow one another, so a set of counters serves a stream. All are zero
// between launches: the last part sets its counter back.
constexpr int kCounters = 2048;
constexpr int kCounterSets = 32;
__device__ unsigned counters[kCounters * kCounterSets];

// True in the block that is the last of `parts` to come here; then what the others had written is
// seen by all of its threads. All threads of a block call it together.
__device__ __forceinline__ bool is_last_part(int counter, int parts) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned highest = static_cast<unsigned>(parts - 1);
    last = atomicInc(counters + counter, highest) == highest;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  return true;
}

// The first of `wanted` counters for a launch on a stream, or -1 where there are none: beyond the
// sets, and in a graph, whose launches may run beside those of the stream that recorded it. Then
// the parts are put together by a launch of their own.
inline int counters_for(void* stream, int64_t wanted) {
  if (wanted > kCounters) return -1;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  if (cudaStreamIsCapturing(cuda_stream, &status) != cudaSuccess ||
      status != cudaStreamCaptureStatusNone || cudaStreamGetId(cuda_stream, &id) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  static std::mutex one_at_a_time;
  static std::map<unsigned long long, int> sets;
  const std::lock_guard lock(one_at_a_time);
  const auto found = sets.find(id);
  if (found != sets.end()) return found->second * kCounters;
  if (sets.size() >= kCounterSets) return -1;
  const int next = static_cast<int>(sets.size());
  sets.emplace(id, next);
  return next * kCounters;
}

}  // namespace
}  // namespace fastvi
