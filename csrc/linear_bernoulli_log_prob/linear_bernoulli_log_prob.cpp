// No kernel of its own: products by torch, and the kernels of bernoulli_log_prob.
#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "torch/linear_density.h"

namespace fastvi::linear_bernoulli_log_prob_op {
namespace {

struct LinearBernoulli {
  using Forward = bernoulli_log_prob;
  using Backward = bernoulli_log_prob_backward;
  static constexpr const char* name = "linear_bernoulli_log_prob";
  static constexpr std::array<const char*, 2> operands{"value", "logits"};
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_linear_density<LinearBernoulli>(m); }

}  // namespace fastvi::linear_bernoulli_log_prob_op
