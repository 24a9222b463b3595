#include "laplace_log_prob/laplace_log_prob.h"

#include "torch/log_density.h"

namespace fastvi::laplace_log_prob_op {
namespace {

struct Laplace {
  using Forward = laplace_log_prob;
  using Backward = laplace_log_prob_backward;
  static constexpr const char* name = "laplace_log_prob";
  static constexpr std::array<const char*, 3> operands{"value", "loc", "scale"};
  static constexpr size_t kinded = 2;  // scale or log_scale
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<Laplace>(m); }

}  // namespace fastvi::laplace_log_prob_op
