#include "common/row_sum.cuh"
#include "gaussian_kl/gaussian_kl.h"

namespace fastvi {
namespace {

template <bool backward>
const char* launch(const GaussianKlParams& p, void* stream) {
  return p.standard_prior ? launch_row_sum<GaussianKlStandardFamily, backward>(p, stream)
                          : launch_row_sum<GaussianKlFamily, backward>(p, stream);
}

}  // namespace

const char* gaussian_kl::cuda(const GaussianKlParams& p, void* stream) {
  return launch<false>(p, stream);
}
const char* gaussian_kl_backward::cuda(const GaussianKlParams& p, void* stream) {
  return launch<true>(p, stream);
}

}  // namespace fastvi
