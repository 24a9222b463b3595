#include "engines/rsample.cuh"
#include "gaussian_rsample/gaussian_rsample.h"

namespace fastvi {

const char* gaussian_rsample_prepare::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, return RsampleCuda<Kind>::launch_prepare(p, stream))
}
const char* gaussian_rsample::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, return RsampleCuda<Kind>::launch_forward(p, stream))
}
const char* gaussian_rsample_backward::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, return RsampleCuda<Kind>::launch_backward(p, stream))
}
const char* gaussian_rsample_combine::cuda(const RsampleParams& p, void* stream) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, return RsampleCuda<Kind>::launch_combine(p, stream))
}

}  // namespace fastvi
