// No kernel of its own: products by torch, and the kernels of bernoulli_log_prob.
#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "common/torch/linear_row_sum.h"

namespace fastvi {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr RowSumNames<2> kNames{"linear_bernoulli_log_prob", {"value", "logits"}};

Tensor call_forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                    const Tensor& value) {
  static auto op = find_op<decltype(call_forward)>("fastvi::linear_bernoulli_log_prob");
  return op.call(hidden, weight, bias, value);
}
Grads call_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                    const OptionalTensor& bias, const Tensor& value, std::array<bool, 4> needs) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_linear_bernoulli_log_prob_backward");
  return op.call(grad, hidden, weight, bias, value, needs);
}

LinearOperands<2> operands(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                           const Tensor& value) {
  return {hidden, weight, or_undefined(bias), {value, Tensor()}};
}
Grads as_tuple(const LinearGrads<2>& grads) {
  return {grads.hidden, grads.weight, grads.bias, grads.others[0]};
}

Tensor forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
               const Tensor& value) {
  const auto in = operands(hidden, weight, bias, value);
  linear_row_sum_shape(kNames, in);
  return linear_row_sum_forward<bernoulli_log_prob>(in, {});
}
Tensor forward_meta(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                    const Tensor& value) {
  return at::empty_symint(linear_row_sum_shape(kNames, operands(hidden, weight, bias, value)),
                          hidden.options().dtype(accumulate_type(hidden.scalar_type())));
}

Grads backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
               const OptionalTensor& bias, const Tensor& value, std::array<bool, 4> needs) {
  return as_tuple(linear_row_sum_backward<bernoulli_log_prob_backward>(
      grad, operands(hidden, weight, bias, value), needs, {}));
}
Grads backward_meta(const Tensor&, const Tensor& hidden, const Tensor& weight,
                    const OptionalTensor& bias, const Tensor& value, std::array<bool, 4> needs) {
  return as_tuple(linear_row_sum_backward_meta(operands(hidden, weight, bias, value), needs));
}

class LinearBernoulliLogProb : public torch::autograd::Function<LinearBernoulliLogProb> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight,
                        const OptionalTensor& bias, const Tensor& value) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({hidden, weight, or_undefined(bias), value});
    return call_forward(hidden, weight, bias, value);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const bool has_bias = saved[2].defined();
    // A bias that is None counts among the inputs of the node only where it is a tensor.
    const std::array<bool, 4> needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                    has_bias && ctx->needs_input_grad(2),
                                    ctx->needs_input_grad(has_bias ? 3 : 2)};
    const auto [hidden, weight, bias, value] =
        call_backward(grads[0], saved[0], saved[1], or_none(saved[2]), saved[3], needs);
    return {needs[0] ? hidden : Tensor(), needs[1] ? weight : Tensor(), needs[2] ? bias : Tensor(),
            needs[3] ? value : Tensor()};
  }
};

Tensor forward_autograd(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& value) {
  return LinearBernoulliLogProb::apply(hidden, weight, bias, value);
}
Grads backward_autograd(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                        const OptionalTensor& bias, const Tensor& value,
                        std::array<bool, 4> needs) {
  const auto out = raise_on_double_backward(
      kNames.op, {grad, hidden, weight, or_undefined(bias), value}, [&]() -> variable_list {
        auto [g_hidden, g_weight, g_bias, g_value] =
            call_backward(grad, hidden, weight, bias, value, needs);
        return {g_hidden, g_weight, g_bias, g_value};
      });
  return {out[0], out[1], out[2], out[3]};
}

Tensor forward_autocast(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& value) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  const Tensor h = cast_for_linear(hidden);
  return call_forward(h, cast_for_linear(weight), or_none(cast_for_linear(or_undefined(bias))),
                      cast_value(value, h.scalar_type()));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "linear_bernoulli_log_prob(Tensor hidden, Tensor weight, Tensor? bias, Tensor value) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_linear_bernoulli_log_prob_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? "
      "bias, Tensor value, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "linear_bernoulli_log_prob", &forward, &forward_meta, &forward_autograd,
              &forward_autocast);
  register_backward(m, "_linear_bernoulli_log_prob_backward", &backward, &backward_meta,
                    &backward_autograd);
}

}  // namespace fastvi
