#include "poisson_log_prob/poisson_log_prob.h"

#include "torch/log_density.h"

namespace fastvi::poisson_log_prob_op {
namespace {

struct Poisson {
  using Forward = poisson_log_prob;
  using Backward = poisson_log_prob_backward;
  static constexpr const char* name = "poisson_log_prob";
  static constexpr std::array<const char*, 2> operands{"value", "rate"};
  static constexpr size_t kinded = 1;  // rate or log_rate
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<Poisson>(m); }

}  // namespace fastvi::poisson_log_prob_op
