#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "engines/row_sum_cpu.h"

namespace fastvi {

void bernoulli_log_prob::FASTVI_ISA(const RowSumParams& p, int64_t begin, int64_t end) {
  row_sum_forward<BernoulliFamily>(p, begin, end);
}
void bernoulli_log_prob_backward::FASTVI_ISA(const RowSumParams& p, int64_t begin, int64_t end) {
  row_sum_backward<BernoulliFamily>(p, begin, end);
}

}  // namespace fastvi
