#include "zero_inflated_negative_binomial_log_prob/zero_inflated_negative_binomial_log_prob.h"

#include "torch/log_density.h"
#include "torch/negative_binomial.h"

namespace fastvi::zero_inflated_negative_binomial_log_prob_op {
namespace {

struct ZeroInflatedNegativeBinomial {
  using Forward = zero_inflated_negative_binomial_log_prob;
  using Backward = zero_inflated_negative_binomial_log_prob_backward;
  static constexpr const char* name = "zero_inflated_negative_binomial_log_prob";
  static constexpr std::array<const char*, 4> operands{"value", "mean", "dispersion",
                                                       "gate_logits"};
  static constexpr size_t kinded = 2;  // dispersion or log_dispersion
  static constexpr auto prepare = &prepare_negative_binomial<4>;
  static constexpr auto prepare_on_card = &prepare_negative_binomial_on_card<4>;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<ZeroInflatedNegativeBinomial>(m); }

}  // namespace fastvi::zero_inflated_negative_binomial_log_prob_op
