#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

#include "engines/row_sum_cpu.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <NegativeBinomialTerm term>
void negative_binomial_terms(const NegativeBinomialTermParams& p, int64_t begin, int64_t end) {
  p.log_dispersion ? row_sum_elements<NegativeBinomialTermFamily<term, true>>(p, begin, end)
                   : row_sum_elements<NegativeBinomialTermFamily<term, false>>(p, begin, end);
}

FASTVI_ISA_END

void negative_binomial_log_prob::FASTVI_ISA(const LogDensityParams& p, int64_t begin, int64_t end) {
  // The value does not ask how the dispersion was given.
  if (p.prepared) return row_sum_forward<PreparedNegativeBinomialFamily<false>>(p, begin, end);
  FASTVI_SWITCH_LOG_PARAMETER(p, NegativeBinomialFamily, Family,
                              row_sum_forward<Family>(p, begin, end))
}
void negative_binomial_log_prob_backward::FASTVI_ISA(const LogDensityParams& p, int64_t begin,
                                                     int64_t end) {
  if (p.prepared) {
    FASTVI_SWITCH_LOG_PARAMETER(p, PreparedNegativeBinomialFamily, Family,
                                return row_sum_backward<Family>(p, begin, end))
  }
  FASTVI_SWITCH_LOG_PARAMETER(p, NegativeBinomialFamily, Family,
                              row_sum_backward<Family>(p, begin, end))
}
void negative_binomial_term::FASTVI_ISA(const NegativeBinomialTermParams& p, int64_t begin,
                                        int64_t end) {
  switch (static_cast<NegativeBinomialTerm>(p.term)) {
    case NegativeBinomialTerm::value:
      return negative_binomial_terms<NegativeBinomialTerm::value>(p, begin, end);
    case NegativeBinomialTerm::slope:
      return negative_binomial_terms<NegativeBinomialTerm::slope>(p, begin, end);
    case NegativeBinomialTerm::dispersion:
      return negative_binomial_terms<NegativeBinomialTerm::dispersion>(p, begin, end);
  }
}

}  // namespace fastvi
