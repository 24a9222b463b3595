#include "bernoulli_log_prob/bernoulli_log_prob.h"

#include "torch/row_sum.h"

namespace fastvi::bernoulli_log_prob_op {
namespace {

using at::Tensor;
using Grads = std::tuple<Tensor, Tensor>;

constexpr RowSumNames<2> kNames{"bernoulli_log_prob", {"value", "logits"}};

Tensor call_forward(const Tensor& value, const Tensor& logits, int64_t event_dims) {
  static auto op = find_op<decltype(call_forward)>("fastvi::bernoulli_log_prob");
  return op.call(value, logits, event_dims);
}
Grads call_backward(const Tensor& grad, const Tensor& value, const Tensor& logits,
                    int64_t event_dims, std::array<bool, 2> needs) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_bernoulli_log_prob_backward");
  return op.call(grad, value, logits, event_dims, needs);
}

auto shape_of(const Tensor& value, const Tensor& logits, int64_t event_dims) {
  return row_sum_shape<2>(kNames, {value, logits}, event_dims, true);
}

Tensor forward(const Tensor& value, const Tensor& logits, int64_t event_dims) {
  return row_sum_forward<bernoulli_log_prob, 2>(
      {value, logits}, shape_of(value, logits, event_dims), event_dims, {});
}
Tensor forward_meta(const Tensor& value, const Tensor& logits, int64_t event_dims) {
  return at::empty_symint(without_event(shape_of(value, logits, event_dims), event_dims),
                          logits.options().dtype(accumulate_type(logits.scalar_type())));
}

Grads backward(const Tensor& grad, const Tensor& value, const Tensor& logits, int64_t event_dims,
               std::array<bool, 2> needs) {
  const auto grads = row_sum_backward<bernoulli_log_prob_backward, 2>(
      grad, {value, logits}, shape_of(value, logits, event_dims), event_dims, needs, {});
  return {grads[0], grads[1]};
}
Grads backward_meta(const Tensor&, const Tensor& value, const Tensor& logits, int64_t,
                    std::array<bool, 2> needs) {
  const auto grads = row_sum_backward_meta<2>({value, logits}, needs);
  return {grads[0], grads[1]};
}

class BernoulliLogProb : public torch::autograd::Function<BernoulliLogProb> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& value, const Tensor& logits,
                        int64_t event_dims) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({value, logits});
    ctx->saved_data["event_dims"] = event_dims;
    return call_forward(value, logits, event_dims);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::array<bool, 2> needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    const auto [value, logits] =
        call_backward(grads[0], saved[0], saved[1], ctx->saved_data["event_dims"].toInt(), needs);
    return {needs[0] ? value : Tensor(), needs[1] ? logits : Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& value, const Tensor& logits, int64_t event_dims) {
  return BernoulliLogProb::apply(value, logits, event_dims);
}
Grads backward_autograd(const Tensor& grad, const Tensor& value, const Tensor& logits,
                        int64_t event_dims, std::array<bool, 2> needs) {
  const auto out =
      raise_on_double_backward("bernoulli_log_prob", {grad, value, logits}, [&]() -> variable_list {
        auto [g_value, g_logits] = call_backward(grad, value, logits, event_dims, needs);
        return {g_value, g_logits};
      });
  return {out[0], out[1]};
}

Tensor forward_autocast(const Tensor& value, const Tensor& logits, int64_t event_dims) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  return call_forward(cast_value(value, logits.scalar_type()), logits, event_dims);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def("bernoulli_log_prob(Tensor value, Tensor logits, int event_dims=1) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_bernoulli_log_prob_backward(Tensor grad, Tensor value, Tensor logits, int event_dims, "
      "bool[2] needs)"
      " -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "bernoulli_log_prob", &forward, &forward_meta, &forward_autograd,
              &forward_autocast);
  register_backward(m, "_bernoulli_log_prob_backward", &backward, &backward_meta,
                    &backward_autograd);
}

}  // namespace fastvi::bernoulli_log_prob_op
