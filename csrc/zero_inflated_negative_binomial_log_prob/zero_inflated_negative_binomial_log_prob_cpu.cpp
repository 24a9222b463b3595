#include "zero_inflated_negative_binomial_log_prob/zero_inflated_negative_binomial_log_prob.h"

#include "engines/row_sum_cpu.h"

namespace fastvi {

void zero_inflated_negative_binomial_log_prob::FASTVI_ISA(const LogDensityParams& p, int64_t begin,
                                                          int64_t end) {
  // The value does not ask how the dispersion was given.
  if (p.prepared)
    return row_sum_forward<PreparedZeroInflatedNegativeBinomialFamily<false>>(p, begin, end);
  FASTVI_SWITCH_LOG_PARAMETER(p, ZeroInflatedNegativeBinomialFamily, Family,
                              row_sum_forward<Family>(p, begin, end))
}
void zero_inflated_negative_binomial_log_prob_backward::FASTVI_ISA(const LogDensityParams& p,
                                                                   int64_t begin, int64_t end) {
  if (p.prepared) {
    FASTVI_SWITCH_LOG_PARAMETER(p, PreparedZeroInflatedNegativeBinomialFamily, Family,
                                return row_sum_backward<Family>(p, begin, end))
  }
  FASTVI_SWITCH_LOG_PARAMETER(p, ZeroInflatedNegativeBinomialFamily, Family,
                              row_sum_backward<Family>(p, begin, end))
}

}  // namespace fastvi
