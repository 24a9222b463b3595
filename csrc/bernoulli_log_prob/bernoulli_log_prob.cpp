#include "bernoulli_log_prob/bernoulli_log_prob.h"

#include "torch/log_density.h"

namespace fastvi::bernoulli_log_prob_op {
namespace {

struct Bernoulli {
  using Forward = bernoulli_log_prob;
  using Backward = bernoulli_log_prob_backward;
  static constexpr const char* name = "bernoulli_log_prob";
  static constexpr std::array<const char*, 2> operands{"value", "logits"};
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<Bernoulli>(m); }

}  // namespace fastvi::bernoulli_log_prob_op
