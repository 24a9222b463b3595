#include "engines/row_sum.cuh"
#include "gaussian_log_prob/gaussian_log_prob.h"

namespace fastvi {
namespace {

template <bool backward>
const char* launch(const GaussianLogProbParams& p, void* stream) {
  FASTVI_SWITCH_SPREAD(p.spread_kind, kind,
                       return (launch_row_sum<GaussianFamily<kind>, backward>(p, stream)))
  return "gaussian_log_prob: unknown kind of spread";
}

}  // namespace

const char* gaussian_log_prob::cuda(const GaussianLogProbParams& p, void* stream) {
  return launch<false>(p, stream);
}
const char* gaussian_log_prob_backward::cuda(const GaussianLogProbParams& p, void* stream) {
  return launch<true>(p, stream);
}

}  // namespace fastvi
