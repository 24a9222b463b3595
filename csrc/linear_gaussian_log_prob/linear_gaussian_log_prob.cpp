// No kernel of its own: products by torch, and the kernels of gaussian_log_prob.
#include "gaussian_log_prob/gaussian_log_prob.h"
#include "torch/linear_row_sum.h"
#include "torch/spread.h"

namespace fastvi::linear_gaussian_log_prob_op {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kName = "linear_gaussian_log_prob";

Tensor call_forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                    const Tensor& value, const Tensor& spread, c10::string_view kind) {
  static auto op = find_op<decltype(call_forward)>("fastvi::linear_gaussian_log_prob");
  return op.call(hidden, weight, bias, value, spread, kind);
}
Grads call_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                    const OptionalTensor& bias, const Tensor& value, const Tensor& spread,
                    c10::string_view kind, std::array<bool, 5> needs) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_linear_gaussian_log_prob_backward");
  return op.call(grad, hidden, weight, bias, value, spread, kind, needs);
}

LinearOperands<3> operands(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                           const Tensor& value, const Tensor& spread) {
  return {hidden, weight, or_undefined(bias), {value, Tensor(), spread}};
}
auto shape_of(const LinearOperands<3>& in, c10::string_view kind) {
  spread_kind_of(kName, kind);
  const std::string name(kind);
  return linear_row_sum_shape(RowSumNames<3>{kName, {"value", "loc", name.c_str()}}, in);
}
GaussianLogProbParams params_of(c10::string_view kind) {
  GaussianLogProbParams p{};
  p.spread_kind = spread_kind_of(kName, kind);
  return p;
}
Grads as_tuple(const LinearGrads<3>& grads) {
  return {grads.hidden, grads.weight, grads.bias, grads.others[0], grads.others[2]};
}

Tensor forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
               const Tensor& value, const Tensor& spread, c10::string_view kind) {
  const auto in = operands(hidden, weight, bias, value, spread);
  shape_of(in, kind);
  return linear_row_sum_forward<gaussian_log_prob>(in, params_of(kind));
}
Tensor forward_meta(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                    const Tensor& value, const Tensor& spread, c10::string_view kind) {
  return at::empty_symint(shape_of(operands(hidden, weight, bias, value, spread), kind),
                          hidden.options().dtype(accumulate_type(hidden.scalar_type())));
}

Grads backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
               const OptionalTensor& bias, const Tensor& value, const Tensor& spread,
               c10::string_view kind, std::array<bool, 5> needs) {
  return as_tuple(linear_row_sum_backward<gaussian_log_prob_backward>(
      grad, operands(hidden, weight, bias, value, spread), needs, params_of(kind)));
}
Grads backward_meta(const Tensor&, const Tensor& hidden, const Tensor& weight,
                    const OptionalTensor& bias, const Tensor& value, const Tensor& spread,
                    c10::string_view, std::array<bool, 5> needs) {
  return as_tuple(
      linear_row_sum_backward_meta(operands(hidden, weight, bias, value, spread), needs));
}

class LinearGaussianLogProb : public torch::autograd::Function<LinearGaussianLogProb> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight,
                        const OptionalTensor& bias, const Tensor& value, const Tensor& spread,
                        const std::string& kind) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({hidden, weight, or_undefined(bias), value, spread});
    ctx->saved_data["kind"] = kind;
    return call_forward(hidden, weight, bias, value, spread, kind);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const bool has_bias = saved[2].defined();
    // A bias that is None counts among the inputs of the node only where it is a tensor.
    const size_t value_at = has_bias ? 3 : 2;
    const std::array<bool, 5> needs{
        ctx->needs_input_grad(0), ctx->needs_input_grad(1), has_bias && ctx->needs_input_grad(2),
        ctx->needs_input_grad(value_at), ctx->needs_input_grad(value_at + 1)};
    const auto [hidden, weight, bias, value, spread] =
        call_backward(grads[0], saved[0], saved[1], or_none(saved[2]), saved[3], saved[4],
                      ctx->saved_data["kind"].toStringRef(), needs);
    return {needs[0] ? hidden : Tensor(), needs[1] ? weight : Tensor(), needs[2] ? bias : Tensor(),
            needs[3] ? value : Tensor(),  needs[4] ? spread : Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& value, const Tensor& spread, c10::string_view kind) {
  return LinearGaussianLogProb::apply(hidden, weight, bias, value, spread, std::string(kind));
}
Grads backward_autograd(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                        const OptionalTensor& bias, const Tensor& value, const Tensor& spread,
                        c10::string_view kind, std::array<bool, 5> needs) {
  const auto out = raise_on_double_backward(
      kName, {grad, hidden, weight, or_undefined(bias), value, spread}, [&]() -> variable_list {
        auto [g_hidden, g_weight, g_bias, g_value, g_spread] =
            call_backward(grad, hidden, weight, bias, value, spread, kind, needs);
        return {g_hidden, g_weight, g_bias, g_value, g_spread};
      });
  return {out[0], out[1], out[2], out[3], out[4]};
}

Tensor forward_autocast(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& value, const Tensor& spread, c10::string_view kind) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  const Tensor h = cast_for_linear(hidden);
  return call_forward(h, cast_for_linear(weight), or_none(cast_for_linear(or_undefined(bias))),
                      cast_value(value, h.scalar_type()), cast_to(spread, h.scalar_type()), kind);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "linear_gaussian_log_prob(Tensor hidden, Tensor weight, Tensor? bias, Tensor value, Tensor "
      "spread, str kind) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_linear_gaussian_log_prob_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor value, Tensor spread, str kind, bool[5] needs) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "linear_gaussian_log_prob", &forward, &forward_meta, &forward_autograd,
              &forward_autocast);
  register_backward(m, "_linear_gaussian_log_prob_backward", &backward, &backward_meta,
                    &backward_autograd);
}

}  // namespace fastvi::linear_gaussian_log_prob_op
