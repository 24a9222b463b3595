#include "zero_inflated_negative_binomial_log_prob/zero_inflated_negative_binomial_log_prob.h"

#include "common/torch/log_density.h"

namespace fastvi {
namespace {

struct ZeroInflatedNegativeBinomial {
  using Forward = zero_inflated_negative_binomial_log_prob;
  using Backward = zero_inflated_negative_binomial_log_prob_backward;
  static constexpr const char* name = "zero_inflated_negative_binomial_log_prob";
  static constexpr std::array<const char*, 4> operands{"value", "mean", "dispersion",
                                                       "gate_logits"};
  static constexpr size_t positive = 2;  // dispersion or log_dispersion
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<ZeroInflatedNegativeBinomial>(m); }

}  // namespace fastvi
