#include "engines/row_sum.cuh"
#include "zero_inflated_negative_binomial_log_prob/zero_inflated_negative_binomial_log_prob.h"

namespace fastvi {

const char* zero_inflated_negative_binomial_log_prob::cuda(const LogDensityParams& p,
                                                           void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, ZeroInflatedNegativeBinomialFamily, Family,
                              return (launch_row_sum<Family, false>(p, stream)))
}
const char* zero_inflated_negative_binomial_log_prob_backward::cuda(const LogDensityParams& p,
                                                                    void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, ZeroInflatedNegativeBinomialFamily, Family,
                              return (launch_row_sum<Family, true>(p, stream)))
}

}  // namespace fastvi
