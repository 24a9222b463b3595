#include "gaussian_rsample/gaussian_rsample.h"

#include "engines/rsample_cpu.h"

namespace fastvi {

void gaussian_rsample_prepare::FASTVI_ISA(const RsampleParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, RsampleCpu<Kind>::prepare(p, begin, end))
}
void gaussian_rsample::FASTVI_ISA(const RsampleParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, RsampleCpu<Kind>::forward(p, begin, end))
}
void gaussian_rsample_backward::FASTVI_ISA(const RsampleParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, RsampleCpu<Kind>::backward(p, begin, end))
}
void gaussian_rsample_combine::FASTVI_ISA(const RsampleParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_GAUSSIAN_DRAW(p, Kind, RsampleCpu<Kind>::combine(p, begin, end))
}

}  // namespace fastvi
