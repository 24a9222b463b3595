#include "torch/launch.h"

namespace fastvi {

#ifdef FASTVI_CUDA_EMULATED
const bool kCudaEmulated = true;
#else
const bool kCudaEmulated = false;
#endif

}  // namespace fastvi
