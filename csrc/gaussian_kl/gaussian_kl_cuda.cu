#include "engines/row_sum.cuh"
#include "gaussian_kl/gaussian_kl.h"

namespace fastvi {
namespace {

template <bool backward>
const char* launch(const GaussianKlParams& p, void* stream) {
  FASTVI_SWITCH_GAUSSIAN_KL(p, Family, return (launch_row_sum<Family, backward>(p, stream)))
}

}  // namespace

const char* gaussian_kl::cuda(const GaussianKlParams& p, void* stream) {
  return launch<false>(p, stream);
}
const char* gaussian_kl_backward::cuda(const GaussianKlParams& p, void* stream) {
  return launch<true>(p, stream);
}

}  // namespace fastvi
