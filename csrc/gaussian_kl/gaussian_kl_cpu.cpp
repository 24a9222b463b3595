#include "gaussian_kl/gaussian_kl.h"

#include "engines/row_sum_cpu.h"

namespace fastvi {

void gaussian_kl::FASTVI_ISA(const GaussianKlParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_GAUSSIAN_KL(p, Family, row_sum_forward<Family>(p, begin, end))
}
void gaussian_kl_backward::FASTVI_ISA(const GaussianKlParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_GAUSSIAN_KL(p, Family, row_sum_backward<Family>(p, begin, end))
}

}  // namespace fastvi
