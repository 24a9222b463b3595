#include "gaussian_log_prob/gaussian_log_prob.h"

#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/reciprocal.h>

#include "torch/log_density.h"
#include "torch/spread.h"

namespace fastvi::gaussian_log_prob_op {
namespace {

using at::Tensor;

// Whether each of them is so far from the ends of its type that its square is within.
bool all_moderate(const Tensor& inverse) {
  const auto within = [&](auto one) {
    using S = decltype(one);
    constexpr S low = sizeof(S) == 4 ? S(0x1p-60f) : S(0x1p-500), high = 1 / low;
    const S* x = inverse.const_data_ptr<S>();
    bool all = true;
    for (int64_t i = 0; i < inverse.numel(); ++i) all &= (x[i] >= low) & (x[i] <= high);
    return all;
  };
  return inverse.scalar_type() == at::kDouble ? within(double{}) : within(float{});
}

struct Gaussian {
  using Forward = gaussian_log_prob;
  using Backward = gaussian_log_prob_backward;
  static constexpr const char* name = "gaussian_log_prob";
  static constexpr std::array<const char*, 3> operands{"value", "loc", "spread"};
  static constexpr size_t kinded = 2;  // scale, log_scale or log_var

  static GaussianLogProbParams params(c10::string_view kind) {
    return params_of_spread<GaussianLogProbParams>(name, kind);
  }

  // See PreparedGaussianFamily: value, location, 1 / sigma and log sigma, where each number of the
  // spread serves several elements.
  static std::optional<std::array<Tensor, 4>> prepare(const std::array<Tensor, 3>& operands,
                                                      const c10::SymDimVector& shape,
                                                      const GaussianLogProbParams& params,
                                                      Derivatives /*derivatives*/) {
    constexpr int64_t kMany = 8;
    const auto& [value, loc, spread] = operands;
    if (accumulate_type(loc.scalar_type()) != loc.scalar_type() ||
        c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(shape)) < kMany * spread.numel())
      return std::nullopt;
    const bool is_sigma = params.spread_kind == SpreadKind::scale;
    const Tensor log_sigma = is_sigma                                    ? spread.log()
                             : params.spread_kind == SpreadKind::log_var ? spread * 0.5
                                                                         : spread;
    const Tensor inverse = is_sigma ? spread.reciprocal() : log_sigma.neg().exp_();
    if (!all_moderate(inverse)) return std::nullopt;
    return std::array<Tensor, 4>{value, loc, inverse, log_sigma};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { register_log_density<Gaussian>(m); }

}  // namespace fastvi::gaussian_log_prob_op
