// The torch side of a log-density, written once for all of them. An op is a struct that says its
// name, its operands, and, if one of them is given in several ways, which:
//   struct Poisson {
//     using Forward = poisson_log_prob;
//     using Backward = poisson_log_prob_backward;
//     static constexpr const char* name = "poisson_log_prob";
//     static constexpr std::array<const char*, 2> operands{"value", "rate"};
//     static constexpr size_t kinded = 1;                // "rate", or "log_rate"
//   };
// and register_log_density<Poisson>(m) does the rest. The kinds are those two, unless the op has
//     static Forward::Params params(c10::string_view kind);
// which refuses others. Where some of the operands meet many others, what depends on the few alone
// is better computed once. An op may say how:
//     static std::optional<std::array<at::Tensor, n + m>> prepare(
//         const std::array<at::Tensor, n>& operands, const c10::SymDimVector& shape,
//         const Forward::Params& params, Derivatives derivatives);
// gives its operands, in the form that the kernels want, and m more, or nothing if that is not
// worth it; its kernels then find `prepared` set. Their derivatives are still those by what was
// given. That is for a CPU, and `prepare_on_card`, which is alike, for a card.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "engines/log_density.h"
#include "torch/row_sum.h"
#include "torch/shell.h"

namespace fastvi {

// What prepared operands are for; `of_parameters` is all of them but that of the value.
enum class Derivatives { none, of_parameters, of_all };

template <class Op>
concept HasKinds = requires { Op::kinded; };
// The type of the argument `kind` of such an op, and of none of another.
template <class Op>
using kinds_of = std::conditional_t<HasKinds<Op>, std::tuple<c10::string_view>, std::tuple<>>;

// The parameters of a call. A kind that the op does not have is refused.
template <class Op, class... Kind>
typename Op::Forward::Params density_params(Kind... kind) {
  if constexpr (requires { Op::params(kind...); }) {
    return Op::params(kind...);
  } else {
    typename Op::Forward::Params p{};
    if constexpr (HasKinds<Op>) {
      const c10::string_view plain(Op::operands[Op::kinded]);
      const std::string log = "log_" + std::string(plain);
      TORCH_CHECK_VALUE(((kind == plain || kind == log) && ...), Op::name, ": expected kind to be ",
                        plain, " or ", log, ", got ", kind...);
      p.log_parameter = ((kind != plain) && ...);
    }
    return p;
  }
}

// Calls `use` with the names of the op and of its operands, one of which goes by its kind.
template <class Op, class Use, class... Kind>
auto with_names(Use use, Kind... kind) {
  RowSumNames<Op::operands.size()> names{Op::name, Op::operands};
  const std::string parameter(kind...);
  if constexpr (HasKinds<Op>) names.operands[Op::kinded] = parameter.c_str();
  return use(names);
}

template <class Op, class = std::make_index_sequence<Op::operands.size()>, class = kinds_of<Op>>
struct LogDensity;
template <class Own>
struct DensityNode : NodeBase<DensityNode<Own>> {
  using Op = LogDensity<Own>;
};

template <class Op, size_t... i, class... Kind>
struct LogDensity<Op, std::index_sequence<i...>, std::tuple<Kind...>> {
  using Tensor = at::Tensor;
  template <size_t>
  using In = const Tensor&;
  template <size_t>
  using Out = Tensor;
  using Grads = std::tuple<Out<i>...>;
  static constexpr size_t n = sizeof...(i);
  using Needs = std::array<bool, n>;

  using Node = DensityNode<Op>;
  static constexpr const char* name = Op::name;
  static std::string schema() { return "(" + operands() + "int event_dims=1) -> Tensor"; }
  static std::string backward_schema() {
    std::string returns;
    for (size_t o = 0; o < n; ++o) returns += o == 0 ? "Tensor" : ", Tensor";
    return "(Tensor grad, " + operands() + "int event_dims, bool[" + std::to_string(n) +
           "] needs) -> (" + returns + ")";
  }
  static constexpr auto differentiable = first_places<n>();
  static constexpr auto kept = first_places<n + sizeof...(Kind) + 1>();
  static constexpr std::array<size_t, 0> kept_results{}, constant_results{};
  static auto backward_arguments(const variable_list& grads, const auto& arguments, at::TensorList,
                                 const Needs& needs) {
    return std::tuple_cat(std::tie(grads[0]), tied(arguments), std::tie(needs));
  }

  static Tensor forward(In<i>... x, Kind... kind, int64_t event_dims) {
    const auto shape = shape_of(x..., kind..., event_dims);
    auto params = density_params<Op>(kind...);
    std::optional<Tensor> result;
    with_preparation(x..., params, [&](auto prepare, auto& params) {
      if (const auto prepared = prepare({x...}, shape, params, Derivatives::none)) {
        params.prepared = true;
        result = row_sum_forward<typename Op::Forward>(*prepared, shape, event_dims, params);
      }
    });
    if (result) return *result;
    return row_sum_forward<typename Op::Forward, n>({x...}, shape, event_dims, params);
  }
  static Tensor forward_meta(In<i>... x, Kind... kind, int64_t event_dims) {
    const auto& like = std::get<1>(std::tie(x...));
    return at::empty_symint(without_event(shape_of(x..., kind..., event_dims), event_dims),
                            like.options().dtype(accumulate_type(like.scalar_type())));
  }
  static Grads backward(const Tensor& grad, In<i>... x, Kind... kind, int64_t event_dims,
                        Needs needs) {
    const auto shape = shape_of(x..., kind..., event_dims);
    auto params = density_params<Op>(kind...);
    std::optional<Grads> result;
    with_preparation(x..., params, [&](auto prepare, auto& params) {
      const auto asked = needs[0] ? Derivatives::of_all : Derivatives::of_parameters;
      if (const auto prepared = prepare({x...}, shape, params, asked)) {
        params.prepared = true;
        std::array<bool, std::tuple_size_v<std::decay_t<decltype(*prepared)>>> all{};
        std::copy(needs.begin(), needs.end(), all.begin());
        const auto grads = row_sum_backward<typename Op::Backward>(grad, *prepared, shape,
                                                                   event_dims, all, params);
        result = Grads{grads[i]...};
      }
    });
    if (result) return *result;
    const auto grads =
        row_sum_backward<typename Op::Backward, n>(grad, {x...}, shape, event_dims, needs, params);
    return {grads[i]...};
  }
  static Grads backward_meta(const Tensor&, In<i>... x, Kind..., int64_t, Needs needs) {
    const auto grads = row_sum_backward_meta<n>({x...}, needs);
    return {grads[i]...};
  }

  // The value follows the parameters, or stays float32.
  static auto autocast(In<i>... x, Kind... kind, int64_t event_dims) {
    const auto type = widest_type({(i == 0 ? Tensor() : x)...});
    return std::tuple((i == 0 ? cast_value(x, type) : cast_to(x, type))..., kind..., event_dims);
  }

 private:
  // Calls `use` with what prepares operands that lie where these do, if the op has it, and with the
  // parameters.
  template <class Params, class Use>
  static void with_preparation(In<i>... x, Params& params, Use use) {
    const bool on_card = !std::get<0>(std::tie(x...)).is_cpu() || kCudaEmulated;
    if constexpr (requires { &Op::prepare; }) {
      if (!on_card) return use(Op::prepare, params);
    }
    if constexpr (requires { &Op::prepare_on_card; }) {
      if (on_card) use(Op::prepare_on_card, params);
    }
  }
  static std::string operands() {
    std::string all;
    for (const char* operand : Op::operands) all += std::string("Tensor ") + operand + ", ";
    return HasKinds<Op> ? all + "str kind, " : all;
  }
  static c10::SymDimVector shape_of(In<i>... x, Kind... kind, int64_t event_dims) {
    density_params<Op>(kind...);
    return with_names<Op>(
        [&](const auto& names) { return row_sum_shape<n>(names, {x...}, event_dims, true); },
        kind...);
  }
};

template <class Op>
void register_log_density(torch::Library& m) {
  Shell<LogDensity<Op>>::define(m);
}

}  // namespace fastvi
