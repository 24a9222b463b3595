#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

#include "torch/log_density.h"
#include "torch/negative_binomial.h"

namespace fastvi::negative_binomial_log_prob_op {
namespace {

struct NegativeBinomial {
  using Forward = negative_binomial_log_prob;
  using Backward = negative_binomial_log_prob_backward;
  static constexpr const char* name = "negative_binomial_log_prob";
  static constexpr std::array<const char*, 3> operands{"value", "mean", "dispersion"};
  static constexpr size_t kinded = 2;  // dispersion or log_dispersion
  static constexpr auto prepare = &prepare_negative_binomial<3>;
  static constexpr auto prepare_on_card = &prepare_negative_binomial_on_card<3>;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<NegativeBinomial>(m); }

}  // namespace fastvi::negative_binomial_log_prob_op
