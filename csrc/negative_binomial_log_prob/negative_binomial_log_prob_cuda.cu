#include "engines/row_sum.cuh"
#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

namespace fastvi {

const char* negative_binomial_log_prob::cuda(const LogDensityParams& p, void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, NegativeBinomialFamily, Family,
                              return (launch_row_sum<Family, false>(p, stream)))
}
const char* negative_binomial_log_prob_backward::cuda(const LogDensityParams& p, void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, NegativeBinomialFamily, Family,
                              return (launch_row_sum<Family, true>(p, stream)))
}

}  // namespace fastvi
