// Bugs of the kind that the emulation and its sanitizers are there for. They must be found.
#include "driver.h"
#include "engines/launch.cuh"

namespace driver {
namespace {

// One element too many.
__global__ void overrun(float* to, int size) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= size) to[i] = 1.0f;
}

// A __syncthreads is missing between the write and the neighbour's read.
__global__ void race(float* to) {
  __shared__ float shared[fastvi::kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  to[threadIdx.x] = shared[(threadIdx.x + 1) % fastvi::kThreads];
}

// Half of the threads leave, the others wait for them.
__global__ void divergence() {
  if (threadIdx.x < fastvi::kThreads / 2) __syncthreads();
}

}  // namespace

void plant_overrun() {
  const Array to(Dtype::f32, 100);
  check_launch("overrun",
               fastvi::launch_blocks(overrun, 1, nullptr, static_cast<float*>(to.data()), 100));
}

void plant_race() {
  const Array to(Dtype::f32, fastvi::kThreads);
  check_launch("race", fastvi::launch_blocks(race, 1, nullptr, static_cast<float*>(to.data())));
}

void plant_divergence() {
  check_launch("divergence", fastvi::launch_blocks(divergence, 1, nullptr));
}

}  // namespace driver
