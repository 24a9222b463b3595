// The torch side of an op, written once: its schemas and dispatcher entries, its autograd function,
// autocast, and its binding to Python. An op is a struct that says what is its own:
//   struct LeaveOneOut {
//     static constexpr const char* name = "leave_one_out";
//     static constexpr const char* schema = "(Tensor log_w) -> (Tensor out, Tensor state)";
//     static constexpr const char* backward_schema =
//         "(Tensor grad, Tensor log_w, Tensor state) -> Tensor";
//     static std::tuple<Tensor, Tensor> forward(const Tensor& log_w);       // on CPU and CUDA
//     static std::tuple<Tensor, Tensor> forward_meta(const Tensor& log_w);  // the shapes alone
//     static Tensor backward(const Tensor& grad, const Tensor& log_w, const Tensor& state);
//     static Tensor backward_meta(const Tensor&, const Tensor& log_w, const Tensor&);
//     // By their places: the arguments that gradients are of; what the backward pass needs, of
//     // arguments (those among them) and of results; the results that have no gradient.
//     static constexpr std::array<size_t, 1> differentiable{0}, kept{0};
//     static constexpr std::array<size_t, 1> kept_results{1}, constant_results{1};
//     // The arguments of `backward`, from the gradients of results (undefined for zero) and what
//     // was kept.
//     static auto backward_arguments(const variable_list& grads, const auto& arguments,
//                                    const variable_list& results);
//   };
// and Shell<LeaveOneOut>::define(m) does the rest. The backward is an op named
// _leave_one_out_backward, which has no derivative and says so.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "torch/gradients.h"

namespace fastvi {

// ---- one tensor or several ----------------------------------------------------------------------
inline variable_list as_list(const at::Tensor& result) { return {result}; }
template <class... T>
variable_list as_list(const std::tuple<T...>& results) {
  return std::apply([](const auto&... x) { return variable_list{x...}; }, results);
}

template <class R>
struct FromList {
  static R make(const variable_list& list) { return list[0]; }
};
template <class... T>
struct FromList<std::tuple<T...>> {
  static std::tuple<T...> make(const variable_list& list) {
    return make(list, std::index_sequence_for<T...>());
  }
  template <size_t... i>
  static std::tuple<T...> make(const variable_list& list, std::index_sequence<i...>) {
    return {list[i]...};
  }
};

// ---- an argument of any type --------------------------------------------------------------------
inline at::Tensor tensor_of(const at::Tensor& t) { return t; }
inline at::Tensor tensor_of(const std::optional<at::Tensor>& t) { return or_undefined(t); }
template <class T>
at::Tensor tensor_of(const T&) {
  return {};
}
template <class T>
const T& cast_to(const T& x, at::ScalarType) {
  return x;
}

// As it is kept for the backward pass: tensors in one list, the rest by their places.
template <class T>
using kept_t = std::conditional_t<std::is_same_v<std::decay_t<T>, c10::string_view>, std::string,
                                  std::decay_t<T>>;
template <class T>
constexpr bool is_tensor =
    std::is_same_v<T, at::Tensor> || std::is_same_v<T, std::optional<at::Tensor>>;

template <class T>
void keep(AutogradContext* ctx, variable_list* tensors, size_t place, const T& x) {
  if constexpr (is_tensor<T>) {
    tensors->push_back(tensor_of(x));
  } else {
    ctx->saved_data[std::to_string(place)] = kept_t<T>(x);
  }
}
template <class T>
T recall(AutogradContext* ctx, const variable_list& tensors, size_t* next, size_t place) {
  if constexpr (std::is_same_v<T, at::Tensor>) {
    return tensors[(*next)++];
  } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
    return or_none(tensors[(*next)++]);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return ctx->saved_data[std::to_string(place)].toStringRef();
  } else if constexpr (std::is_same_v<T, c10::SymInt>) {
    return ctx->saved_data[std::to_string(place)].toSymInt();
  } else {
    return ctx->saved_data[std::to_string(place)].to<T>();
  }
}

// ---- the shell ----------------------------------------------------------------------------------
template <class Op, class Forward = decltype(&Op::forward),
          class Backward = decltype(&Op::backward)>
class Shell;

template <class Op, class R, class... Args, class G, class... BackwardArgs>
class Shell<Op, R (*)(Args...), G (*)(BackwardArgs...)> {
  using Places = std::index_sequence_for<Args...>;
  using Arguments = std::tuple<kept_t<Args>...>;

 public:
  static R call_forward(Args... args) {
    static auto op = find_op<R(Args...)>((std::string("fastvi::") + Op::name).c_str());
    return op.call(std::forward<Args>(args)...);
  }
  static G call_backward(BackwardArgs... args) {
    static auto op = find_op<G(BackwardArgs...)>(("fastvi::" + backward_name()).c_str());
    return op.call(std::forward<BackwardArgs>(args)...);
  }

  class Function : public torch::autograd::Function<Function> {
   public:
    static variable_list forward(AutogradContext* ctx, const std::decay_t<Args>&... args) {
      at::AutoDispatchBelowADInplaceOrView guard;
      const variable_list results = as_list(call_forward(args...));
      ctx->set_materialize_grads(false);
      variable_list constants, tensors;
      for (const size_t i : Op::constant_results) constants.push_back(results[i]);
      ctx->mark_non_differentiable(constants);
      keep_all(ctx, &tensors, Places(), args...);
      for (const size_t i : Op::kept_results) tensors.push_back(results[i]);
      ctx->save_for_backward(std::move(tensors));
      return results;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
      variable_list found(sizeof...(Args));
      if (std::none_of(grads.begin(), grads.end(), [](const auto& g) { return g.defined(); })) {
        return found;
      }
      const variable_list tensors = ctx->get_saved_variables();
      size_t next = 0;
      const Arguments given = recall_all(ctx, tensors, &next, Places());
      const variable_list results(tensors.begin() + static_cast<std::ptrdiff_t>(next),
                                  tensors.end());
      const variable_list gradients =
          as_list(std::apply(call_backward, Op::backward_arguments(grads, given, results)));
      for (size_t i = 0; i < gradients.size(); ++i) {
        const size_t place = Op::differentiable[i];
        // An argument that was not given has none.
        if (tensor_at(given, place, Places()).defined()) found[place] = gradients[i];
      }
      return found;
    }

   private:
    static constexpr bool is_kept(size_t place) {
      return std::find(Op::kept.begin(), Op::kept.end(), place) != Op::kept.end();
    }
    template <size_t... i>
    static void keep_all(AutogradContext* ctx, variable_list* tensors, std::index_sequence<i...>,
                         const std::decay_t<Args>&... args) {
      (keep_at<i>(ctx, tensors, args), ...);
    }
    template <size_t i, class T>
    static void keep_at(AutogradContext* ctx, variable_list* tensors, const T& x) {
      if constexpr (is_kept(i)) keep(ctx, tensors, i, x);
    }
    template <size_t i>
    static std::tuple_element_t<i, Arguments> recall_at(AutogradContext* ctx,
                                                        const variable_list& tensors,
                                                        size_t* next) {
      using T = std::tuple_element_t<i, Arguments>;
      if constexpr (is_kept(i)) {
        return recall<T>(ctx, tensors, next, i);
      } else {
        return T{};
      }
    }
    template <size_t... i>
    static Arguments recall_all(AutogradContext* ctx, const variable_list& tensors, size_t* next,
                                std::index_sequence<i...>) {
      return Arguments{recall_at<i>(ctx, tensors, next)...};
    }
    template <size_t... i>
    static at::Tensor tensor_at(const Arguments& given, size_t place, std::index_sequence<i...>) {
      at::Tensor found;
      ((place == i ? void(found = tensor_of(std::get<i>(given))) : void()), ...);
      return found;
    }
  };

  static R forward_autograd(Args... args) { return FromList<R>::make(Function::apply(args...)); }
  static G backward_autograd(BackwardArgs... args) {
    return FromList<G>::make(raise_on_double_backward(
        Op::name, variable_list{tensor_of(args)...},
        [&]() -> variable_list { return as_list(call_backward(args...)); }));
  }
  // The tensors of a call meet in the widest of their types.
  static R forward_autocast(Args... args) {
    c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
    const auto type = widest_type({tensor_of(args)...});
    return call_forward(cast_to(args, type)...);
  }

  static void define(torch::Library& m) {
    m.def((std::string(Op::name) + Op::schema).c_str(), {at::Tag::pt2_compliant_tag});
    m.def((backward_name() + Op::backward_schema).c_str(), {at::Tag::pt2_compliant_tag});
    register_op(m, Op::name, &Op::forward, &Op::forward_meta, &forward_autograd, &forward_autocast);
    register_backward(m, backward_name().c_str(), &Op::backward, &Op::backward_meta,
                      &backward_autograd);
  }

 private:
  static std::string backward_name() { return std::string("_") + Op::name + "_backward"; }
};

}  // namespace fastvi
