#include "gaussian_kl/gaussian_kl.h"

#include "torch/row_sum.h"

namespace fastvi::gaussian_kl_op {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr RowSumNames<2> kStandardNames{"gaussian_kl", {"loc", "log_var"}};
constexpr RowSumNames<4> kNames{"gaussian_kl", {"loc", "log_var", "prior loc", "prior log_var"}};

Tensor call_forward(const Tensor& loc, const Tensor& log_var, const OptionalTensor& prior_loc,
                    const OptionalTensor& prior_log_var, bool of_scales) {
  static auto op = find_op<decltype(call_forward)>("fastvi::gaussian_kl");
  return op.call(loc, log_var, prior_loc, prior_log_var, of_scales);
}
Grads call_backward(const Tensor& grad, const Tensor& loc, const Tensor& log_var,
                    const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                    bool of_scales, std::array<bool, 4> needs) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_gaussian_kl_backward");
  return op.call(grad, loc, log_var, prior_loc, prior_log_var, of_scales, needs);
}

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

Tensor forward(const Tensor& loc, const Tensor& log_var, const OptionalTensor& prior_loc,
               const OptionalTensor& prior_log_var, bool of_scales) {
  const auto shape = shape_of(loc, log_var, prior_loc, prior_log_var, of_scales);
  GaussianKlParams p{};
  p.standard_prior = !prior_loc.has_value();
  p.of_scales = of_scales;
  if (p.standard_prior) return row_sum_forward<gaussian_kl, 2>({loc, log_var}, shape, 1, p);
  return row_sum_forward<gaussian_kl, 4>({loc, log_var, *prior_loc, *prior_log_var}, shape, 1, p);
}
Tensor forward_meta(const Tensor& loc, const Tensor& log_var, const OptionalTensor& prior_loc,
                    const OptionalTensor& prior_log_var, bool of_scales) {
  return at::empty_symint(
      without_event(shape_of(loc, log_var, prior_loc, prior_log_var, of_scales), 1),
      loc.options().dtype(accumulate_type(loc.scalar_type())));
}

Grads backward(const Tensor& grad, const Tensor& loc, const Tensor& log_var,
               const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var, bool of_scales,
               std::array<bool, 4> needs) {
  const auto shape = shape_of(loc, log_var, prior_loc, prior_log_var, of_scales);
  GaussianKlParams p{};
  p.standard_prior = !prior_loc.has_value();
  p.of_scales = of_scales;
  if (p.standard_prior) {
    const auto grads = row_sum_backward<gaussian_kl_backward, 2>(grad, {loc, log_var}, shape, 1,
                                                                 {needs[0], needs[1]}, p);
    return {grads[0], grads[1], at::empty({0}, loc.options()), at::empty({0}, loc.options())};
  }
  const auto grads = row_sum_backward<gaussian_kl_backward, 4>(
      grad, {loc, log_var, *prior_loc, *prior_log_var}, shape, 1, needs, p);
  return {grads[0], grads[1], grads[2], grads[3]};
}
Grads backward_meta(const Tensor&, const Tensor& loc, const Tensor& log_var,
                    const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var, bool,
                    std::array<bool, 4> needs) {
  const auto grads = row_sum_backward_meta<4>(
      {loc, log_var, prior_loc.value_or(loc), prior_log_var.value_or(loc)},
      {needs[0], needs[1], needs[2] && prior_loc.has_value(), needs[3] && prior_loc.has_value()});
  return {grads[0], grads[1], grads[2], grads[3]};
}

class GaussianKl : public torch::autograd::Function<GaussianKl> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& loc, const Tensor& log_var,
                        const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                        bool of_scales) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->saved_data["of_scales"] = of_scales;
    ctx->save_for_backward({loc, log_var, or_undefined(prior_loc), or_undefined(prior_log_var)});
    return call_forward(loc, log_var, prior_loc, prior_log_var, of_scales);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    std::array<bool, 4> needs{};
    for (size_t i = 0; i < 4; ++i) needs[i] = saved[i].defined() && ctx->needs_input_grad(i);
    const auto [a, b, c, d] =
        call_backward(grads[0], saved[0], saved[1], or_none(saved[2]), or_none(saved[3]),
                      ctx->saved_data["of_scales"].toBool(), needs);
    return {needs[0] ? a : Tensor(), needs[1] ? b : Tensor(), needs[2] ? c : Tensor(),
            needs[3] ? d : Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& loc, const Tensor& log_var, const OptionalTensor& prior_loc,
                        const OptionalTensor& prior_log_var, bool of_scales) {
  return GaussianKl::apply(loc, log_var, prior_loc, prior_log_var, of_scales);
}
Grads backward_autograd(const Tensor& grad, const Tensor& loc, const Tensor& log_var,
                        const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                        bool of_scales, std::array<bool, 4> needs) {
  const auto out = raise_on_double_backward(
      "gaussian_kl", {grad, loc, log_var, or_undefined(prior_loc), or_undefined(prior_log_var)},
      [&]() -> variable_list {
        auto [a, b, c, d] =
            call_backward(grad, loc, log_var, prior_loc, prior_log_var, of_scales, needs);
        return {a, b, c, d};
      });
  return {out[0], out[1], out[2], out[3]};
}

Tensor forward_autocast(const Tensor& loc, const Tensor& log_var, const OptionalTensor& prior_loc,
                        const OptionalTensor& prior_log_var, bool of_scales) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  const auto type =
      widest_type({loc, log_var, or_undefined(prior_loc), or_undefined(prior_log_var)});
  return call_forward(cast_to(loc, type), cast_to(log_var, type), cast_to(prior_loc, type),
                      cast_to(prior_log_var, type), of_scales);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "gaussian_kl(Tensor loc, Tensor log_var, Tensor? prior_loc=None, Tensor? prior_log_var=None, "
      "bool of_scales=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_gaussian_kl_backward(Tensor grad, Tensor loc, Tensor log_var, Tensor? prior_loc, Tensor? "
      "prior_log_var,"
      " bool of_scales, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "gaussian_kl", &forward, &forward_meta, &forward_autograd, &forward_autocast);
  register_backward(m, "_gaussian_kl_backward", &backward, &backward_meta, &backward_autograd);
}

}  // namespace fastvi::gaussian_kl_op
