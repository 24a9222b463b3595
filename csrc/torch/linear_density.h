// The torch side of a Linear whose outputs are a parameter of a log-density, written once for all
// of them. An op has no kernel of its own, and is a struct that says its name and its family, as
// that of torch/log_density.h does:
//   struct LinearBernoulli {
//     using Forward = bernoulli_log_prob;
//     using Backward = bernoulli_log_prob_backward;
//     static constexpr const char* name = "linear_bernoulli_log_prob";
//     static constexpr std::array<const char*, 2> operands{"value", "logits"};
//   };
// and register_linear_density<LinearBernoulli>(m) does the rest. Operand 1 is what the Linear puts
// out.
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include "torch/linear_row_sum.h"
#include "torch/log_density.h"

namespace fastvi {

template <class Op, class = std::make_index_sequence<Op::operands.size() - 2>, class = kinds_of<Op>>
struct LinearDensity;
template <class Own>
struct LinearNode : NodeBase<LinearNode<Own>> {
  using Op = LinearDensity<Own>;
};

template <class Op, size_t... i, class... Kind>
struct LinearDensity<Op, std::index_sequence<i...>, std::tuple<Kind...>> {
  using Tensor = at::Tensor;
  using OptionalTensor = std::optional<Tensor>;
  template <size_t>
  using In = const Tensor&;
  template <size_t>
  using Out = Tensor;
  using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Out<i>...>;
  static constexpr size_t n = 2 + sizeof...(i), tensors = 4 + sizeof...(i);
  using Needs = std::array<bool, tensors>;

  using Node = LinearNode<Op>;
  static constexpr const char* name = Op::name;
  static std::string schema() { return "(" + arguments() + ") -> Tensor"; }
  static std::string backward_schema() {
    std::string returns;
    for (size_t o = 0; o < tensors; ++o) returns += o == 0 ? "Tensor" : ", Tensor";
    return "(Tensor grad, " + arguments() + ", bool[" + std::to_string(tensors) + "] needs) -> (" +
           returns + ")";
  }
  static constexpr auto differentiable = first_places<tensors>();
  static constexpr auto kept = first_places<tensors + sizeof...(Kind)>();
  static constexpr std::array<size_t, 0> kept_results{}, constant_results{};
  static auto backward_arguments(const variable_list& grads, const auto& arguments, at::TensorList,
                                 const Needs& needs) {
    return std::tuple_cat(std::tie(grads[0]), tied(arguments), std::tie(needs));
  }

  static Tensor forward(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& value, In<i>... others, Kind... kind) {
    const auto params = density_params<Op>(kind...);
    const auto in = operands(hidden, weight, bias, value, others...);
    shape_of(in, kind...);
    return linear_row_sum_forward<typename Op::Forward>(in, params);
  }
  static Tensor forward_meta(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& value, In<i>... others, Kind... kind) {
    density_params<Op>(kind...);
    return at::empty_symint(shape_of(operands(hidden, weight, bias, value, others...), kind...),
                            hidden.options().dtype(accumulate_type(hidden.scalar_type())));
  }
  static Grads backward(const Tensor& grad, const Tensor& hidden, const Tensor& weight,
                        const OptionalTensor& bias, const Tensor& value, In<i>... others,
                        Kind... kind, Needs needs) {
    return as_tuple(linear_row_sum_backward<typename Op::Backward>(
        grad, operands(hidden, weight, bias, value, others...), needs,
        density_params<Op>(kind...)));
  }
  static Grads backward_meta(const Tensor&, const Tensor& hidden, const Tensor& weight,
                             const OptionalTensor& bias, const Tensor& value, In<i>... others,
                             Kind..., Needs needs) {
    return as_tuple(
        linear_row_sum_backward_meta(operands(hidden, weight, bias, value, others...), needs));
  }

  // As torch's Linear does it; the value follows, or stays float32.
  static auto autocast(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                       const Tensor& value, In<i>... others, Kind... kind) {
    const Tensor h = cast_for_linear(hidden);
    const auto type = h.scalar_type();
    return std::tuple(h, cast_for_linear(weight), or_none(cast_for_linear(or_undefined(bias))),
                      cast_value(value, type), cast_to(others, type)..., kind...);
  }

 private:
  static std::string arguments() {
    std::string all = "Tensor hidden, Tensor weight, Tensor? bias, Tensor value";
    for (size_t o = 2; o < n; ++o) all += std::string(", Tensor ") + Op::operands[o];
    return HasKinds<Op> ? all + ", str kind" : all;
  }
  static LinearOperands<n> operands(const Tensor& hidden, const Tensor& weight,
                                    const OptionalTensor& bias, const Tensor& value,
                                    In<i>... others) {
    return {hidden, weight, or_undefined(bias), {value, Tensor(), others...}};
  }
  static c10::SymDimVector shape_of(const LinearOperands<n>& in, Kind... kind) {
    return with_names<Op>([&](const auto& names) { return linear_row_sum_shape(names, in); },
                          kind...);
  }
  static Grads as_tuple(const LinearGrads<n>& grads) {
    return {grads.hidden, grads.weight, grads.bias, grads.others[0], grads.others[2 + i]...};
  }
};

template <class Op>
void register_linear_density(torch::Library& m) {
  Shell<LinearDensity<Op>>::define(m);
}

}  // namespace fastvi
