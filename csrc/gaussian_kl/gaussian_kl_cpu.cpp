#include "gaussian_kl/gaussian_kl.h"

#include "common/row_sum_cpu.h"

namespace fastvi {

void gaussian_kl::FASTVI_ISA(const GaussianKlParams& p, int64_t begin, int64_t end) {
  p.standard_prior ? row_sum_forward<GaussianKlStandardFamily>(p, begin, end)
                   : row_sum_forward<GaussianKlFamily>(p, begin, end);
}
void gaussian_kl_backward::FASTVI_ISA(const GaussianKlParams& p, int64_t begin, int64_t end) {
  p.standard_prior ? row_sum_backward<GaussianKlStandardFamily>(p, begin, end)
                   : row_sum_backward<GaussianKlFamily>(p, begin, end);
}

}  // namespace fastvi
