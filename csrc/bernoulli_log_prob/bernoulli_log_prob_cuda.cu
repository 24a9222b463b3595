#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "engines/row_sum.cuh"

namespace fastvi {

const char* bernoulli_log_prob::cuda(const RowSumParams& p, void* stream) {
  return launch_row_sum<BernoulliFamily, false>(p, stream);
}
const char* bernoulli_log_prob_backward::cuda(const RowSumParams& p, void* stream) {
  return launch_row_sum<BernoulliFamily, true>(p, stream);
}

}  // namespace fastvi
