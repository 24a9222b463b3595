// The part of the CUDA runtime that fastvi's kernels use, for the host compiler: a host thread for
// each CUDA thread, one block after another. AddressSanitizer then sees an access out of range, and
// ThreadSanitizer a missing __syncthreads, where a GPU would say nothing.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks run one after another, so one copy serves all of them.
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct __attribute__((may_alias, aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((may_alias, aligned(16))) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttributeValue {
  int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

// A stream that records a graph: the kernels still run, for a launch asks and does not record.
namespace cuda_emulation {
inline bool recording = false;
}
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cuda_emulation::recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<std::uintptr_t>(stream);
  return cudaSuccess;
}

// Those of an H200, and as many blocks as its threads allow.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;
  return cudaSuccess;
}
template <class... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Params...),
                                                          int threads, std::size_t) {
  *blocks = 2048 / threads;
  return cudaSuccess;
}

// Kernels for compute capability 9.0, which can wait for the launch before them.
struct cudaFuncAttributes {
  int ptxVersion;
};
template <class... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Params...)) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

inline constexpr unsigned kWarpSize = 32;

// What the threads of a block share.
class Block {
 public:
  explicit Block(unsigned threads)
      : threads_(threads), all_(threads, Check{this}), slots_(2 * threads) {
    for (unsigned i = 0; i < threads / kWarpSize; ++i)
      warps_.push_back(std::make_unique<std::barrier<>>(kWarpSize));
  }
  void sync() { all_.arrive_and_wait(); }
  void leave() {
    ++leaving_;
    all_.arrive_and_wait();
  }
  // Two sets of slots in turn: a thread that writes one again has passed the barrier behind its
  // last reader.
  std::uint64_t exchange(std::uint64_t word, unsigned partner_mask, unsigned turn) {
    const unsigned me = threadIdx.x;
    std::uint64_t* slots = slots_.data() + turn % 2 * threads_;
    slots[me] = word;
    warps_[me / kWarpSize]->arrive_and_wait();
    return slots[me ^ partner_mask];
  }

 private:
  // A barrier that some threads reach at the end of the kernel and others inside it is a bug.
  struct Check {
    Block* block;
    void operator()() noexcept {
      const unsigned leaving = block->leaving_.exchange(0);
      if (leaving == 0 || leaving == block->threads_) return;
      std::fprintf(
          stderr,
          "cuda_emulation: %u of %u threads left a block whose others wait at __syncthreads\n",
          leaving, block->threads_);
      std::abort();
    }
  };
  unsigned threads_;
  std::atomic<unsigned> leaving_ = 0;
  std::barrier<Check> all_;
  std::vector<std::unique_ptr<std::barrier<>>> warps_;
  std::vector<std::uint64_t> slots_;
};

inline thread_local Block* block = nullptr;
inline thread_local unsigned shuffles = 0;

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::block->sync(); }

// What an atomic instruction and a fence say to other blocks. Blocks run one after another, so of
// this only the machine of tests/device/ptx sees a fault.
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* at, unsigned highest) {
  const std::atomic_ref<unsigned> counter(*at);
  unsigned old = counter.load();
  while (!counter.compare_exchange_weak(old, old >= highest ? 0 : old + 1)) {
  }
  return old;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int lane_mask) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  if (mask != 0xffffffffu || lane_mask < 0 || lane_mask >= 32) {
    std::fprintf(stderr, "cuda_emulation: __shfl_xor_sync serves whole warps\n");
    std::abort();
  }
  std::uint64_t word = 0;
  std::memcpy(&word, &x, sizeof(T));
  word = cuda_emulation::block->exchange(word, static_cast<unsigned>(lane_mask),
                                         cuda_emulation::shuffles++);
  std::memcpy(&x, &word, sizeof(T));
  return x;
}

namespace cuda_emulation {

// The threads of a block, kept from launch to launch: starting them costs more than most kernels.
class Team {
 public:
  explicit Team(unsigned threads) : threads_(threads), block_(threads), gate_(threads + 1) {
    for (unsigned i = 0; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    kernel_ = nullptr;
    gate_.arrive_and_wait();
    for (auto& worker : workers_) worker.join();
  }
  unsigned threads() const { return threads_; }

  void run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
    config_ = &config;
    kernel_ = &kernel;
    gate_.arrive_and_wait();
    gate_.arrive_and_wait();
  }

 private:
  void work(unsigned thread) {
    block = &block_;
    for (;;) {
      gate_.arrive_and_wait();
      if (kernel_ == nullptr) return;
      threadIdx = dim3(thread);
      blockDim = config_->blockDim;
      gridDim = config_->gridDim;
      for (unsigned b = 0; b < gridDim.x; ++b) {
        blockIdx = dim3(b);
        (*kernel_)();
        block_.leave();
      }
      gate_.arrive_and_wait();
    }
  }

  const unsigned threads_;
  Block block_;
  std::barrier<> gate_;
  const cudaLaunchConfig_t* config_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::thread> workers_;
};

inline cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  const unsigned threads = config.blockDim.x, blocks = config.gridDim.x;
  if (blocks == 0 || blocks > 2147483647u || threads == 0 || threads > 1024 ||
      threads % kWarpSize != 0) {
    return cudaErrorInvalidConfiguration;
  }
  static std::mutex one_launch_at_a_time;
  const std::lock_guard lock(one_launch_at_a_time);
  static std::unique_ptr<Team> team;
  if (team == nullptr || team->threads() != threads) team = std::make_unique<Team>(threads);
  team->run(config, kernel);
  return cudaSuccess;
}

}  // namespace cuda_emulation

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  return cuda_emulation::launch(*config, [&] { kernel(args...); });
}
