// The torch side of a log-density with one positive parameter, written once for all of them. An op
// is a struct that says its name, its operands, and which of them is given in two ways:
//   struct Poisson {
//     using Forward = poisson_log_prob;
//     using Backward = poisson_log_prob_backward;
//     static constexpr const char* name = "poisson_log_prob";
//     static constexpr std::array<const char*, 2> operands{"value", "rate"};
//     static constexpr size_t positive = 1;                // "rate", or "log_rate"
//   };
// and register_log_density<Poisson>(m) does the rest. Where a value and its positive parameter meet
// many other operands, what depends on these two alone is better computed once. An op may say how:
//     static std::array<at::Tensor, n + m> prepare(const std::array<at::Tensor, n>& operands,
//                                                  bool log_parameter, bool derivative);
// gives its operands, with the parameter itself in place of its logarithm, and m more; its kernels
// then find `prepared` set. The derivative that they give is still that by what was given.
#pragma once

#include <tuple>
#include <utility>

#include "engines/log_density.h"
#include "torch/row_sum.h"

namespace fastvi {

template <class Op, class = std::make_index_sequence<Op::operands.size()>>
class LogDensity;

template <class Op, size_t... i>
class LogDensity<Op, std::index_sequence<i...>> {
  using Tensor = at::Tensor;
  template <size_t>
  using In = const Tensor&;
  template <size_t>
  using Out = Tensor;
  using Grads = std::tuple<Out<i>...>;
  static constexpr size_t n = sizeof...(i);
  using Needs = std::array<bool, n>;

 public:
  static Tensor call_forward(In<i>... x, c10::string_view kind, int64_t event_dims) {
    static auto op = find_op<decltype(call_forward)>(full_name("").c_str());
    return op.call(x..., kind, event_dims);
  }
  static Grads call_backward(const Tensor& grad, In<i>... x, c10::string_view kind,
                             int64_t event_dims, Needs needs) {
    static auto op = find_op<decltype(call_backward)>(full_name("_", "_backward").c_str());
    return op.call(grad, x..., kind, event_dims, needs);
  }

  static Tensor forward(In<i>... x, c10::string_view kind, int64_t event_dims) {
    const auto shape = shape_of(x..., kind, event_dims);
    auto params = params_of(kind);
    if constexpr (requires { &Op::prepare; }) {
      if (worth_preparing({x...}, shape)) {
        params.prepared = true;
        return row_sum_forward<typename Op::Forward>(
            Op::prepare({x...}, params.log_parameter, /*derivative=*/false), shape, event_dims,
            params);
      }
    }
    return row_sum_forward<typename Op::Forward, n>({x...}, shape, event_dims, params);
  }
  static Tensor forward_meta(In<i>... x, c10::string_view kind, int64_t event_dims) {
    const auto& like = std::get<1>(std::tie(x...));
    return at::empty_symint(without_event(shape_of(x..., kind, event_dims), event_dims),
                            like.options().dtype(accumulate_type(like.scalar_type())));
  }
  static Grads backward(const Tensor& grad, In<i>... x, c10::string_view kind, int64_t event_dims,
                        Needs needs) {
    const auto shape = shape_of(x..., kind, event_dims);
    auto params = params_of(kind);
    if constexpr (requires { &Op::prepare; }) {
      if (!needs[0] && worth_preparing({x...}, shape)) {
        params.prepared = true;
        const auto prepared = Op::prepare({x...}, params.log_parameter, /*derivative=*/true);
        std::array<bool, std::tuple_size_v<decltype(prepared)>> all{};
        std::copy(needs.begin(), needs.end(), all.begin());
        const auto grads =
            row_sum_backward<typename Op::Backward>(grad, prepared, shape, event_dims, all, params);
        return {grads[i]...};
      }
    }
    const auto grads =
        row_sum_backward<typename Op::Backward, n>(grad, {x...}, shape, event_dims, needs, params);
    return {grads[i]...};
  }
  static Grads backward_meta(const Tensor&, In<i>... x, c10::string_view, int64_t, Needs needs) {
    const auto grads = row_sum_backward_meta<n>({x...}, needs);
    return {grads[i]...};
  }

  class Function : public torch::autograd::Function<Function> {
   public:
    static Tensor forward(AutogradContext* ctx, In<i>... x, const std::string& kind,
                          int64_t event_dims) {
      at::AutoDispatchBelowADInplaceOrView guard;
      ctx->save_for_backward({x...});
      ctx->saved_data["kind"] = kind;
      ctx->saved_data["event_dims"] = event_dims;
      return call_forward(x..., kind, event_dims);
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
      const auto saved = ctx->get_saved_variables();
      const Needs needs{ctx->needs_input_grad(i)...};
      const auto found = call_backward(grads[0], saved[i]..., ctx->saved_data["kind"].toStringRef(),
                                       ctx->saved_data["event_dims"].toInt(), needs);
      return {(needs[i] ? std::get<i>(found) : Tensor())..., Tensor(), Tensor()};
    }
  };

  static Tensor forward_autograd(In<i>... x, c10::string_view kind, int64_t event_dims) {
    return Function::apply(x..., std::string(kind), event_dims);
  }
  static Grads backward_autograd(const Tensor& grad, In<i>... x, c10::string_view kind,
                                 int64_t event_dims, Needs needs) {
    const auto out = raise_on_double_backward(Op::name, {grad, x...}, [&]() -> variable_list {
      const auto found = call_backward(grad, x..., kind, event_dims, needs);
      return {std::get<i>(found)...};
    });
    return {out[i]...};
  }
  static Tensor forward_autocast(In<i>... x, c10::string_view kind, int64_t event_dims) {
    c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
    const std::array<Tensor, n> given{x...};
    auto type = given[1].scalar_type();
    for (size_t o = 2; o < n; ++o) type = c10::promoteTypes(type, given[o].scalar_type());
    return call_forward(i == 0 ? cast_value(x, type) : cast_to(x, type)..., kind, event_dims);
  }

  static void define(torch::Library& m) {
    const std::string name(Op::name);
    std::string operands, returns, separator;
    for (const char* operand : Op::operands) {
      operands += std::string("Tensor ") + operand + ", ";
      returns += separator + "Tensor";
      separator = ", ";
    }
    const std::string forward_schema =
        name + "(" + operands + "str kind, int event_dims=1) -> Tensor";
    const std::string backward_schema = "_" + name + "_backward(Tensor grad, " + operands +
                                        "str kind, int event_dims, bool[" + std::to_string(n) +
                                        "] needs) -> (" + returns + ")";
    m.def(forward_schema.c_str(), {at::Tag::pt2_compliant_tag});
    m.def(backward_schema.c_str(), {at::Tag::pt2_compliant_tag});
    register_op(m, name.c_str(), &forward, &forward_meta, &forward_autograd, &forward_autocast);
    register_backward(m, ("_" + name + "_backward").c_str(), &backward, &backward_meta,
                      &backward_autograd);
  }

 private:
  static std::string full_name(const char* before, const char* after = "") {
    return std::string("fastvi::") + before + Op::name + after;
  }
  static bool is_log(c10::string_view kind) {
    const c10::string_view plain(Op::operands[Op::positive]);
    const std::string log = std::string("log_") + std::string(plain);
    TORCH_CHECK_VALUE(kind == plain || kind == log, Op::name, ": expected kind to be ", plain,
                      " or ", log, ", got ", kind);
    return kind != plain;
  }
  // On a CPU alone: the CUDA kernels have no prepared families. In half precision what is prepared
  // would have to be kept in another type than its neighbours.
  static bool worth_preparing(const std::array<Tensor, n>& operands,
                              const c10::SymDimVector& shape) {
    constexpr int64_t kMany = 2, kSmall = 4096;
    const auto type = operands[1].scalar_type();
    if (!operands[1].is_cpu() || kCudaEmulated || accumulate_type(type) != type) return false;
    const int64_t total = c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(shape));
    c10::SymDimVector own;
    broadcast_into(&own, operands[0].sym_sizes());
    broadcast_into(&own, operands[Op::positive].sym_sizes());
    return total >= kSmall && total >= kMany * c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(own));
  }
  static LogDensityParams params_of(c10::string_view kind) {
    LogDensityParams p{};
    p.log_parameter = is_log(kind);
    return p;
  }
  static c10::SymDimVector shape_of(In<i>... x, c10::string_view kind, int64_t event_dims) {
    is_log(kind);
    const std::string parameter(kind);
    RowSumNames<n> names{Op::name, Op::operands};
    names.operands[Op::positive] = parameter.c_str();
    return row_sum_shape<n>(names, {x...}, event_dims, true);
  }
};

template <class Op>
void register_log_density(torch::Library& m) {
  LogDensity<Op>::define(m);
}

}  // namespace fastvi
