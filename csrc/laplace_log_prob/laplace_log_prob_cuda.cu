#include "engines/row_sum.cuh"
#include "laplace_log_prob/laplace_log_prob.h"

namespace fastvi {

const char* laplace_log_prob::cuda(const LogDensityParams& p, void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, LaplaceFamily, Family,
                              return (launch_row_sum<Family, false>(p, stream)))
}
const char* laplace_log_prob_backward::cuda(const LogDensityParams& p, void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, LaplaceFamily, Family,
                              return (launch_row_sum<Family, true>(p, stream)))
}

}  // namespace fastvi
