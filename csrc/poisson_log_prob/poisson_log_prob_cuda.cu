#include "engines/row_sum.cuh"
#include "poisson_log_prob/poisson_log_prob.h"

namespace fastvi {

const char* poisson_log_prob::cuda(const LogDensityParams& p, void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, PoissonFamily, Family,
                              return (launch_row_sum<Family, false>(p, stream)))
}
const char* poisson_log_prob_backward::cuda(const LogDensityParams& p, void* stream) {
  FASTVI_SWITCH_LOG_PARAMETER(p, PoissonFamily, Family,
                              return (launch_row_sum<Family, true>(p, stream)))
}

}  // namespace fastvi
