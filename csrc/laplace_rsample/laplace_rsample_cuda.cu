#include "engines/rsample.cuh"
#include "laplace_rsample/laplace_rsample.h"

namespace fastvi {

const char* laplace_rsample_prepare::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_LAPLACE_DRAW(p, Kind, return RsampleCuda<Kind>::launch_prepare(p, stream))
}
const char* laplace_rsample::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_LAPLACE_DRAW(p, Kind, return RsampleCuda<Kind>::launch_forward(p, stream))
}
const char* laplace_rsample_backward::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_LAPLACE_DRAW(p, Kind, return RsampleCuda<Kind>::launch_backward(p, stream))
}
const char* laplace_rsample_combine::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_LAPLACE_DRAW(p, Kind, return RsampleCuda<Kind>::launch_combine(p, stream))
}

}  // namespace fastvi
