// The CUDA runtime for the host compiler, where a launch runs the translated PTX of the kernel. Its
// words for device code are those of the emulation: the bodies are compiled, and never run.
#pragma once

#define cudaLaunchKernelEx launch_of_the_emulation
#include "cuda_emulation/cuda_runtime.h"
#undef cudaLaunchKernelEx
// The machine finds a kernel by the symbol at its address.
#undef __global__
#define __global__ __attribute__((noinline, used))

#include "ptx/machine.h"

// The parameters lie one behind another, each at its own alignment.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  std::vector<char> parameters;
  const auto put = [&]<class P>(const P& x) {
    const std::size_t begin = (parameters.size() + alignof(P) - 1) / alignof(P) * alignof(P);
    parameters.resize(begin + sizeof(P));
    std::memcpy(parameters.data() + begin, &x, sizeof(P));
  };
  (put.template operator()<std::remove_cv_t<Params>>(args), ...);
  const bool early =
      config->numAttrs > 0 && config->attrs->val.programmaticStreamSerializationAllowed != 0;
  const bool launched =
      ptx::launch(reinterpret_cast<const void*>(kernel), config->gridDim.x, config->blockDim.x,
                  config->dynamicSmemBytes, early, parameters);
  return launched ? cudaSuccess : cudaErrorInvalidConfiguration;
}
