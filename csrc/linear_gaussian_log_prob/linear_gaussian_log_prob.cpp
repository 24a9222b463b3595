// No kernel of its own: products by torch, and the kernels of gaussian_log_prob.
#include "gaussian_log_prob/gaussian_log_prob.h"
#include "torch/linear_density.h"
#include "torch/spread.h"

namespace fastvi::linear_gaussian_log_prob_op {
namespace {

struct LinearGaussian {
  using Forward = gaussian_log_prob;
  using Backward = gaussian_log_prob_backward;
  static constexpr const char* name = "linear_gaussian_log_prob";
  static constexpr std::array<const char*, 3> operands{"value", "loc", "spread"};
  static constexpr size_t kinded = 2;  // scale, log_scale or log_var
  static Forward::Params params(c10::string_view kind) {
    return params_of_spread<Forward::Params>(name, kind);
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_linear_density<LinearGaussian>(m); }

}  // namespace fastvi::linear_gaussian_log_prob_op
