#include "poisson_log_prob/poisson_log_prob.h"

#include "engines/row_sum_cpu.h"

namespace fastvi {

void poisson_log_prob::FASTVI_ISA(const LogDensityParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_LOG_PARAMETER(p, PoissonFamily, Family, row_sum_forward<Family>(p, begin, end))
}
void poisson_log_prob_backward::FASTVI_ISA(const LogDensityParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_LOG_PARAMETER(p, PoissonFamily, Family, row_sum_backward<Family>(p, begin, end))
}

}  // namespace fastvi
