#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

#include "common/row_sum_cpu.h"

namespace fastvi {

void negative_binomial_log_prob::FASTVI_ISA(const LogDensityParams& p, int64_t begin, int64_t end) {
  if (p.prepared) return row_sum_forward<PreparedNegativeBinomialFamily>(p, begin, end);
  FASTVI_SWITCH_LOG_PARAMETER(p, NegativeBinomialFamily, Family,
                              row_sum_forward<Family>(p, begin, end))
}
void negative_binomial_log_prob_backward::FASTVI_ISA(const LogDensityParams& p, int64_t begin,
                                                     int64_t end) {
  if (p.prepared) return row_sum_backward<PreparedNegativeBinomialFamily>(p, begin, end);
  FASTVI_SWITCH_LOG_PARAMETER(p, NegativeBinomialFamily, Family,
                              row_sum_backward<Family>(p, begin, end))
}
void negative_binomial_term::FASTVI_ISA(const NegativeBinomialTermParams& p, int64_t begin,
                                        int64_t end) {
  p.derivative ? row_sum_forward<NegativeBinomialTermFamily<true>>(p, begin, end)
               : row_sum_forward<NegativeBinomialTermFamily<false>>(p, begin, end);
}

}  // namespace fastvi
