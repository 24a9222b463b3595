// No kernel of its own: products by torch, and the kernels of bernoulli_log_prob.
#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "torch/linear_density.h"

namespace fastvi::linear_bernoulli_log_prob_op {
namespace {

struct LinearBernoulli {
  using Forward = bernoulli_log_prob;
  using Backward = bernoulli_log_prob_backward;
  static constexpr RowSumNames<2> names{"linear_bernoulli_log_prob", {"value", "logits"}};
  static Forward::Params params() { return {}; }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_linear_density<LinearBernoulli>(m); }

}  // namespace fastvi::linear_bernoulli_log_prob_op
