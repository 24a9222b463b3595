// No kernel of its own: products by torch, and the kernels of poisson_log_prob.
#include "poisson_log_prob/poisson_log_prob.h"
#include "torch/linear_density.h"

namespace fastvi::linear_poisson_log_prob_op {
namespace {

struct LinearPoisson {
  using Forward = poisson_log_prob;
  using Backward = poisson_log_prob_backward;
  static constexpr const char* name = "linear_poisson_log_prob";
  static constexpr std::array<const char*, 2> operands{"value", "log_rate"};
  static Forward::Params params() {
    Forward::Params params{};
    params.log_parameter = true;
    return params;
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_linear_density<LinearPoisson>(m); }

}  // namespace fastvi::linear_poisson_log_prob_op
