#include "gaussian_kl/gaussian_kl.h"

#include "torch/row_sum.h"
#include "torch/shell.h"

namespace fastvi::gaussian_kl_op {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr RowSumNames<2> kStandardNames{"gaussian_kl", {"loc", "log_var"}};
constexpr RowSumNames<4> kNames{"gaussian_kl", {"loc", "log_var", "prior loc", "prior log_var"}};

c10::SymDimVector shape_of(const Tensor& loc, const Tensor& log_var,
                           const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                           bool of_scales) {
  TORCH_CHECK_VALUE(prior_loc.has_value() == prior_log_var.has_value(),
                    "gaussian_kl: expected both of prior loc and prior log_var, or neither");
  TORCH_CHECK_VALUE(prior_loc.has_value() || !of_scales,
                    "gaussian_kl: expected a prior beside scales, got None");
  check_floating("gaussian_kl", "loc", loc);
  check_rank("gaussian_kl", "loc", loc, 1);
  const auto shape = row_sum_shape<2>(kStandardNames, {loc, log_var}, 1, false);
  if (!prior_loc.has_value()) return shape;
  // The prior is broadcast to the data, never the data to the prior.
  const auto check_prior = [&](const char* name, const Tensor& t) {
    c10::SymDimVector widened = shape;
    TORCH_CHECK_VALUE(broadcast_into(&widened, t.sym_sizes()) && widened == shape,
                      "gaussian_kl: expected ", name, " to broadcast to ", shape, ", got shape ",
                      t.sym_sizes());
  };
  check_prior("prior loc", *prior_loc);
  check_prior("prior log_var", *prior_log_var);
  return row_sum_shape<4>(kNames, {loc, log_var, *prior_loc, *prior_log_var}, 1, false);
}

GaussianKlParams params_of(const OptionalTensor& prior_loc, bool of_scales) {
  GaussianKlParams p{};
  p.standard_prior = !prior_loc.has_value();
  p.of_scales = of_scales;
  return p;
}

struct GaussianKl {
  static constexpr const char* name = "gaussian_kl";
  static constexpr const char* schema =
      "(Tensor loc, Tensor log_var, Tensor? prior_loc=None, Tensor? prior_log_var=None, "
      "bool of_scales=False) -> Tensor";
  static constexpr const char* backward_schema =
      "(Tensor grad, Tensor loc, Tensor log_var, Tensor? prior_loc, Tensor? prior_log_var, "
      "bool of_scales, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)";
  static constexpr std::array<size_t, 4> differentiable{0, 1, 2, 3};
  static constexpr std::array<size_t, 5> kept{0, 1, 2, 3, 4};
  static constexpr std::array<size_t, 0> kept_results{}, constant_results{};
  static auto backward_arguments(const variable_list& grads, const auto& arguments, at::TensorList,
                                 const std::array<bool, 4>& needs) {
    return std::tuple_cat(std::tie(grads[0]), tied(arguments), std::tie(needs));
  }

  static Tensor forward(const Tensor& loc, const Tensor& log_var, const OptionalTensor& prior_loc,
                        const OptionalTensor& prior_log_var, bool of_scales) {
    const auto shape = shape_of(loc, log_var, prior_loc, prior_log_var, of_scales);
    const GaussianKlParams p = params_of(prior_loc, of_scales);
    if (p.standard_prior) return row_sum_forward<gaussian_kl, 2>({loc, log_var}, shape, 1, p);
    return row_sum_forward<gaussian_kl, 4>({loc, log_var, *prior_loc, *prior_log_var}, shape, 1, p);
  }
  static Tensor forward_meta(const Tensor& loc, const Tensor& log_var,
                             const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                             bool of_scales) {
    return at::empty_symint(
        without_event(shape_of(loc, log_var, prior_loc, prior_log_var, of_scales), 1),
        loc.options().dtype(accumulate_type(loc.scalar_type())));
  }

  static Grads backward(const Tensor& grad, const Tensor& loc, const Tensor& log_var,
                        const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                        bool of_scales, std::array<bool, 4> needs) {
    const auto shape = shape_of(loc, log_var, prior_loc, prior_log_var, of_scales);
    const GaussianKlParams p = params_of(prior_loc, of_scales);
    if (p.standard_prior) {
      const auto grads = row_sum_backward<gaussian_kl_backward, 2>(grad, {loc, log_var}, shape, 1,
                                                                   {needs[0], needs[1]}, p);
      return {grads[0], grads[1], at::empty({0}, loc.options()), at::empty({0}, loc.options())};
    }
    const auto grads = row_sum_backward<gaussian_kl_backward, 4>(
        grad, {loc, log_var, *prior_loc, *prior_log_var}, shape, 1, needs, p);
    return {grads[0], grads[1], grads[2], grads[3]};
  }
  static Grads backward_meta(const Tensor&, const Tensor& loc, const Tensor& log_var,
                             const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                             bool, std::array<bool, 4> needs) {
    const auto grads = row_sum_backward_meta<4>(
        {loc, log_var, prior_loc.value_or(loc), prior_log_var.value_or(loc)},
        {needs[0], needs[1], needs[2] && prior_loc.has_value(), needs[3] && prior_loc.has_value()});
    return {grads[0], grads[1], grads[2], grads[3]};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<GaussianKl>::define(m); }

}  // namespace fastvi::gaussian_kl_op
