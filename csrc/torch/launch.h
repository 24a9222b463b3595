// From a tensor's device to a kernel's entry: the CPU's through the thread pool of torch, CUDA's on
// the current stream of the tensor's device.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "simd/cpu_isa.h"
#include "simd/macros.h"

namespace fastvi {

// True in the build that runs the CUDA kernels on the host (tests/device/cuda_emulation).
extern const bool kCudaEmulated;

template <class Kernel>
auto cpu_entry() {
  switch (cpu_isa()) {
#ifdef FASTVI_X86
    case CpuIsa::avx512:
      return &Kernel::avx512;
    case CpuIsa::avx2:
      return &Kernel::avx2;
#endif
    default:
      return &Kernel::baseline;
  }
}

// Runs `tasks` tasks of a kernel; `work` is the rough cost of one, in elements.
template <class Kernel>
void launch(const at::Tensor& where, const typename Kernel::Params& params, int64_t tasks,
            int64_t work) {
  if (tasks == 0) return;
  if (where.is_cuda() || kCudaEmulated) {
    TORCH_CHECK(&Kernel::cuda != nullptr,
                "fastvi was built without CUDA; rebuild it with FASTVI_CUDA=1 to use CUDA tensors");
    void* stream = nullptr;
    const c10::OptionalDeviceGuard guard(where.is_cuda() ? std::optional(where.device())
                                                         : std::nullopt);
    if (where.is_cuda()) {
      stream = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA)
                   .getStream(where.device())
                   .native_handle();
    }
    const char* error = Kernel::cuda(params, stream);
    TORCH_CHECK(error == nullptr, "fastvi: a CUDA kernel could not be launched: ", error);
    return;
  }
  // Below about this much work a second thread costs more than it brings.
  constexpr int64_t kGrain = 32768;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work));
  const auto entry = cpu_entry<Kernel>();
  if (tasks <= grain) return entry(params, 0, tasks);
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { entry(params, begin, end); });
}

}  // namespace fastvi
