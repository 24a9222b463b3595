// Faults of the kind that the machine is there for, each beside a twin without it.
#include "ptx/planted.h"

#include <stdexcept>
#include <vector>

#include "engines/launch.cuh"
#include "engines/reduce.cuh"

namespace planted {
namespace {

using fastvi::kThreads;
constexpr int kSize = 2 * kThreads;

// Each thread reads what its neighbour wrote.
template <bool sound>
__global__ void neighbour(float* to) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (sound) __syncthreads();
  to[blockIdx.x * kThreads + threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

// The next round overwrites what a slow thread has yet to read.
template <bool sound>
__global__ void rounds(float* to) {
  __shared__ float shared[kThreads];
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    shared[threadIdx.x] = static_cast<float>(threadIdx.x + i);
    __syncthreads();
    sum += shared[kThreads - 1 - threadIdx.x];
    if (sound) __syncthreads();
  }
  to[blockIdx.x * kThreads + threadIdx.x] = sum;
}

template <int distance>
__global__ void vectors(float* to) {
  if (threadIdx.x == 0) *reinterpret_cast<uint4*>(to + distance) = uint4{1, 2, 3, 4};
}

// The second half of the array, or all of it but its first number and one behind it.
template <bool sound>
__global__ void overrun(float* to, int from) {
  to[from + static_cast<int>(threadIdx.x) + (sound ? 0 : 1)] = 1.0f;
}

template <bool sound>
__global__ void shared_overrun(float* to, int distance) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x + (sound ? 0 : distance)] = 1.0f;
  __syncthreads();
  to[threadIdx.x] = shared[threadIdx.x];
}

// Half of the threads leave, the others wait for them.
template <bool sound>
__global__ void divergence(float* to, int waiting) {
  if (sound || static_cast<int>(threadIdx.x) < waiting) __syncthreads();
  if (threadIdx.x == 0) to[0] = 1.0f;
}

// Half of a warp goes elsewhere before all lanes meet.
template <bool sound>
__global__ void half_a_warp(float* to, int lanes) {
  float x = static_cast<float>(threadIdx.x);
  if (sound || static_cast<int>(threadIdx.x) % 32 < lanes)
    x += __shfl_xor_sync(fastvi::kAllLanes, x, 1);
  to[threadIdx.x] = x;
}

template <bool sound>
__global__ void never_written(float* to, int written) {
  __shared__ float shared[kThreads];
  if (sound || static_cast<int>(threadIdx.x) < written) shared[threadIdx.x] = 1.0f;
  __syncthreads();
  to[threadIdx.x] = shared[threadIdx.x];
}

// All blocks write one number.
template <bool sound>
__global__ void blocks_collide(float* to) {
  if (threadIdx.x == 0) to[sound ? blockIdx.x : 0] = 1.0f;
}

// The last block adds up what all have written; a fence on both sides makes that visible to it.
template <bool fence_before, bool fence_behind>
__device__ void sum_in_last_block([[maybe_unused]] float* to) {
#if defined(__CUDA_ARCH__)
  __shared__ bool last;
  unsigned* const count = reinterpret_cast<unsigned*>(to + kSize - 1);
  if (threadIdx.x < 8) to[8 * blockIdx.x + threadIdx.x] = 1.0f;
  if (fence_before) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(count, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  if (fence_behind) __threadfence();
  float sum = 0;
  if (threadIdx.x < 8) {
    for (unsigned i = 0; i < gridDim.x; ++i) sum += to[8 * i + threadIdx.x];
    to[8 * gridDim.x + threadIdx.x] = sum;
  }
#endif
}
template <bool sound>
__global__ void last_block(float* to) {
  sum_in_last_block<sound, true>(to);
}
template <bool sound>
__global__ void last_block_reads(float* to) {
  sum_in_last_block<true, sound>(to);
}

// Each reads what the launch before it may yet have to write; or leaves, so that the next launch
// takes it for done.
template <bool sound>
__global__ void reads_early(float* to) {
  if (sound) fastvi::wait_for_launch_before();
  to[threadIdx.x] += 1.0f;
}
template <bool sound>
__global__ void leaves_early(float* to, int waiting) {
  if (!sound && static_cast<int>(threadIdx.x) >= waiting) return;
  fastvi::wait_for_launch_before();
  to[threadIdx.x] = 1.0f;
}

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), int blocks, Arguments... arguments) {
  std::vector<float> to(kSize);
  const char* const error = fastvi::launch_blocks(kernel, blocks, nullptr, to.data(), arguments...);
  if (error != nullptr) throw std::runtime_error(error);
}

template <auto kernel, class... Arguments>
void start_after(Arguments... arguments) {
  std::vector<float> to(kSize);
  const char* const error = fastvi::launch_after<kernel>(1, nullptr, to.data(), arguments...);
  if (error != nullptr) throw std::runtime_error(error);
}

}  // namespace

#define PLANTED(kernel, blocks, ...)                                                   \
  if (name == #kernel) return start(kernel<false>, blocks __VA_OPT__(, ) __VA_ARGS__); \
  if (name == "sound_" #kernel) return start(kernel<true>, blocks __VA_OPT__(, ) __VA_ARGS__);

void run(const std::string& name) {
  PLANTED(neighbour, 2)
  PLANTED(rounds, 2)
  PLANTED(overrun, 1, kThreads)
  PLANTED(last_block, 4)
  PLANTED(last_block_reads, 4)
  PLANTED(shared_overrun, 1, 1)
  PLANTED(divergence, 1, kThreads / 2)
  PLANTED(half_a_warp, 1, 16)
  PLANTED(never_written, 1, 100)
  PLANTED(blocks_collide, 2)
  if (name == "reads_early") return start_after<reads_early<false>>();
  if (name == "sound_reads_early") return start_after<reads_early<true>>();
  if (name == "leaves_early") return start_after<leaves_early<false>>(kThreads / 2);
  if (name == "sound_leaves_early") return start_after<leaves_early<true>>(kThreads / 2);
  if (name == "vectors") return start(vectors<1>, 1);
  if (name == "sound_vectors") return start(vectors<4>, 1);
  throw std::runtime_error("no fault is called " + name);
}

}  // namespace planted
