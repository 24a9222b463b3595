// The torch side of a Linear whose outputs are the one parameter of a log-density, written once for
// all of them. An op has no kernel of its own, and is a struct that says its name and its family:
//   struct LinearBernoulli {
//     using Forward = bernoulli_log_prob;
//     using Backward = bernoulli_log_prob_backward;
//     static constexpr RowSumNames<2> names{"linear_bernoulli_log_prob", {"value", "logits"}};
//     static Forward::Params params() { return {}; }
//   };
// and register_linear_density<LinearBernoulli>(m) does the rest.
#pragma once

#include <string>
#include <tuple>

#include "torch/linear_row_sum.h"

namespace fastvi {

template <class Op>
class LinearDensity {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<Tensor>;
  using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  using Needs = std::array<bool, 4>;

 public:
  static Tensor call_forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& value) {
    static auto op = find_op<decltype(call_forward)>(full_name("").c_str());
    return op.call(hidden, weight, bias, value);
  }
  static Grads call_backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                             const OptionalTensor& bias, const Tensor& value, Needs needs) {
    static auto op = find_op<decltype(call_backward)>(full_name("_", "_backward").c_str());
    return op.call(grad, hidden, weight, bias, value, needs);
  }

  static Tensor forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& value) {
    const auto in = operands(hidden, weight, bias, value);
    linear_row_sum_shape(Op::names, in);
    return linear_row_sum_forward<typename Op::Forward>(in, Op::params());
  }
  static Tensor forward_meta(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& value) {
    return at::empty_symint(linear_row_sum_shape(Op::names, operands(hidden, weight, bias, value)),
                            hidden.options().dtype(accumulate_type(hidden.scalar_type())));
  }
  static Grads backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                        const OptionalTensor& bias, const Tensor& value, Needs needs) {
    return as_tuple(linear_row_sum_backward<typename Op::Backward>(
        grad, operands(hidden, weight, bias, value), needs, Op::params()));
  }
  static Grads backward_meta(const Tensor&, const Tensor& hidden, const Tensor& weight,
                             const OptionalTensor& bias, const Tensor& value, Needs needs) {
    return as_tuple(linear_row_sum_backward_meta(operands(hidden, weight, bias, value), needs));
  }

  class Function : public torch::autograd::Function<Function> {
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
      const Needs needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                        has_bias && ctx->needs_input_grad(2),
                        ctx->needs_input_grad(has_bias ? 3 : 2)};
      const auto [hidden, weight, bias, value] =
          call_backward(grads[0], saved[0], saved[1], or_none(saved[2]), saved[3], needs);
      return {needs[0] ? hidden : Tensor(), needs[1] ? weight : Tensor(),
              needs[2] ? bias : Tensor(), needs[3] ? value : Tensor()};
    }
  };

  static Tensor forward_autograd(const Tensor& hidden, const Tensor& weight,
                                 const OptionalTensor& bias, const Tensor& value) {
    return Function::apply(hidden, weight, bias, value);
  }
  static Grads backward_autograd(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                                 const OptionalTensor& bias, const Tensor& value, Needs needs) {
    const auto out = raise_on_double_backward(
        Op::names.op, {grad, hidden, weight, or_undefined(bias), value}, [&]() -> variable_list {
          auto [g_hidden, g_weight, g_bias, g_value] =
              call_backward(grad, hidden, weight, bias, value, needs);
          return {g_hidden, g_weight, g_bias, g_value};
        });
    return {out[0], out[1], out[2], out[3]};
  }
  static Tensor forward_autocast(const Tensor& hidden, const Tensor& weight,
                                 const OptionalTensor& bias, const Tensor& value) {
    c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
    const Tensor h = cast_for_linear(hidden);
    return call_forward(h, cast_for_linear(weight), or_none(cast_for_linear(or_undefined(bias))),
                        cast_value(value, h.scalar_type()));
  }

  static void define(torch::Library& m) {
    const std::string name(Op::names.op);
    const std::string tensors = "Tensor hidden, Tensor weight, Tensor? bias, Tensor value";
    m.def((name + "(" + tensors + ") -> Tensor").c_str(), {at::Tag::pt2_compliant_tag});
    m.def(("_" + name + "_backward(Tensor grad, " + tensors +
           ", bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)")
              .c_str(),
          {at::Tag::pt2_compliant_tag});
    register_op(m, name.c_str(), &forward, &forward_meta, &forward_autograd, &forward_autocast);
    register_backward(m, ("_" + name + "_backward").c_str(), &backward, &backward_meta,
                      &backward_autograd);
  }

 private:
  static std::string full_name(const char* before, const char* after = "") {
    return std::string("fastvi::") + before + Op::names.op + after;
  }
  static LinearOperands<2> operands(const Tensor& hidden, const Tensor& weight,
                                    const OptionalTensor& bias, const Tensor& value) {
    return {hidden, weight, or_undefined(bias), {value, Tensor()}};
  }
  static Grads as_tuple(const LinearGrads<2>& grads) {
    return {grads.hidden, grads.weight, grads.bias, grads.others[0]};
  }
};

template <class Op>
void register_linear_density(torch::Library& m) {
  LinearDensity<Op>::define(m);
}

}  // namespace fastvi
