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
//     // was kept; and, if it wants to know, from which gradients are asked for.
//     static auto backward_arguments(const variable_list& grads, const auto& arguments,
//                                    at::TensorList results);
//   };
// and Shell<LeaveOneOut>::define(m) does the rest. The backward is an op named
// _leave_one_out_backward, which has no derivative and says so. An op may also have
//   static std::string schema();                              // in place of one that is written
//   out static variable_list gradients(const Tensor& backward, needs);  // where they are not one
//   for one static std::tuple<...> autocast(const Tensor& log_w);     // in place of the widest
//   type for all
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "torch/gradients.h"

namespace fastvi {

// ---- one tensor or several ----------------------------------------------------------------------
inline variable_list as_list(at::Tensor result) {
  variable_list list;
  list.push_back(std::move(result));
  return list;
}
template <class... T>
variable_list as_list(std::tuple<T...> results) {
  variable_list list;
  list.reserve(sizeof...(T));
  std::apply([&](auto&... x) { (list.push_back(std::move(x)), ...); }, results);
  return list;
}

// The same, not copied.
template <class... T>
std::tuple<const T&...> tied(const std::tuple<T...>& all) {
  return std::apply([](const T&... x) { return std::tie(x...); }, all);
}

template <size_t n>
constexpr std::array<size_t, n> first_places() {
  std::array<size_t, n> places{};
  for (size_t i = 0; i < n; ++i) places[i] = i;
  return places;
}

template <class R>
struct FromList {
  static R make(variable_list list) { return std::move(list[0]); }
};
template <class... T>
struct FromList<std::tuple<T...>> {
  static std::tuple<T...> make(variable_list list) {
    return make(list, std::index_sequence_for<T...>());
  }
  template <size_t... i>
  static std::tuple<T...> make(variable_list& list, std::index_sequence<i...>) {
    return {std::move(list[i])...};
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

// As it is kept for the backward pass: tensors in one list, the rest in another.
template <class T>
using kept_t = std::conditional_t<std::is_same_v<std::decay_t<T>, c10::string_view>, std::string,
                                  std::decay_t<T>>;
template <class T>
constexpr bool is_tensor =
    std::is_same_v<T, at::Tensor> || std::is_same_v<T, std::optional<at::Tensor>>;

struct Kept {
  variable_list tensors;
  std::vector<c10::IValue> values;
  bool is_usual = true;  // all values are those of their types that stand for none

  template <class T>
  void add(const T& x) {
    if constexpr (is_tensor<T>) {
      tensors.push_back(tensor_of(x));
    } else {
      values.emplace_back(kept_t<T>(x));
      if constexpr (std::is_arithmetic_v<T>) {
        is_usual = is_usual && x == T{};
      } else {
        is_usual = false;
      }
    }
  }
};

// What was kept, in the same order.
class Recalled {
 public:
  explicit Recalled(AutogradContext* ctx) : tensors_(ctx->get_saved_variables()) {
    // The one entry that there may be: to look for a name takes as long as a small reduction.
    if (!ctx->saved_data.empty()) values_ = ctx->saved_data.begin()->second.toTupleRef().elements();
  }

  template <class T>
  T next() {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      return std::move(tensors_[next_tensor_++]);
    } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
      at::Tensor& kept = tensors_[next_tensor_++];
      return kept.defined() ? std::optional(std::move(kept)) : std::nullopt;
    } else {
      return values_.empty() ? T{} : values_[next_value_++].to<T>();
    }
  }
  at::TensorList rest() const {
    return {tensors_.data() + next_tensor_, tensors_.size() - next_tensor_};
  }

 private:
  variable_list tensors_;
  at::ArrayRef<c10::IValue> values_;
  size_t next_tensor_ = 0, next_value_ = 0;
};

// ---- the shell ----------------------------------------------------------------------------------
// The node of an op in autograd's graph. Torch demangles the name of its type at every backward
// pass, which takes the longer the longer it is: so it is no part of the shell, whose name has
// those of all arguments. Ops of a kind, and one whose calls are the shortest, may have a `Node` of
// their own.
template <class Op>
struct OpNode;
template <class Op>
struct node_of {
  using type = OpNode<Op>;
};
template <class Op>
  requires requires { typename Op::Node; }
struct node_of<Op> {
  using type = typename Op::Node;
};

template <class Op, class Forward = decltype(&Op::forward),
          class Backward = decltype(&Op::backward)>
class Shell;

template <class Op, class R, class... Args, class G, class... BackwardArgs>
class Shell<Op, R (*)(Args...), G (*)(BackwardArgs...)> {
  using Places = std::index_sequence_for<Args...>;
  using Arguments = std::tuple<kept_t<Args>...>;
  using Needs = std::array<bool, Op::differentiable.size()>;

 public:
  static R call_forward(Args... args) {
    static auto op = find_op<R(Args...)>((std::string("fastvi::") + Op::name).c_str());
    return op.call(std::forward<Args>(args)...);
  }
  static G call_backward(BackwardArgs... args) {
    static auto op = find_op<G(BackwardArgs...)>(("fastvi::" + backward_name()).c_str());
    return op.call(std::forward<BackwardArgs>(args)...);
  }

  // What the node does.
  class Passes {
   public:
    static variable_list forward(AutogradContext* ctx, const std::decay_t<Args>&... args) {
      at::AutoDispatchBelowADInplaceOrView guard;
      variable_list results = as_list(call_forward(args...));
      ctx->set_materialize_grads(false);
      Kept all;
      all.tensors.reserve(Op::kept.size() + Op::kept_results.size());
      if constexpr (Op::constant_results.size() != 0) {
        variable_list constants;
        for (const size_t i : Op::constant_results) constants.push_back(results[i]);
        ctx->mark_non_differentiable(constants);
      }
      keep_all(&all, Places(), args...);
      for (const size_t i : Op::kept_results) all.tensors.push_back(results[i]);
      ctx->save_for_backward(std::move(all.tensors));
      if (!all.is_usual) {
        ctx->saved_data["values"] = c10::ivalue::Tuple::create(std::move(all.values));
      }
      return results;
    }
    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
      variable_list found(sizeof...(Args));
      if (std::none_of(grads.begin(), grads.end(), [](const auto& g) { return g.defined(); })) {
        return found;
      }
      Recalled all(ctx);
      const Arguments given = recall_all(&all, Places());
      const Needs needs = needs_of(ctx, given, Places());
      const variable_list gradients = gradients_of(grads, given, all.rest(), needs);
      for (size_t i = 0; i < gradients.size(); ++i) {
        if (needs[i]) found[Op::differentiable[i]] = gradients[i];
      }
      return found;
    }

   private:
    static variable_list gradients_of(const variable_list& grads, const Arguments& given,
                                      at::TensorList results, const Needs& needs) {
      const auto backward = [&] {
        // Without a graph there is nobody to differentiate it, and so nothing to refuse.
        std::optional<at::AutoDispatchBelowADInplaceOrView> below;
        if (!at::GradMode::is_enabled()) below.emplace();
        if constexpr (requires { Op::backward_arguments(grads, given, results, needs); }) {
          return std::apply(call_backward, Op::backward_arguments(grads, given, results, needs));
        } else {
          return std::apply(call_backward, Op::backward_arguments(grads, given, results));
        }
      };
      if constexpr (requires { Op::gradients(backward(), needs); }) {
        return Op::gradients(backward(), needs);
      } else {
        return as_list(backward());
      }
    }

    // Autograd counts tensors alone, and one that may be left out only where it was given.
    template <size_t... i>
    static Needs needs_of(AutogradContext* ctx, const Arguments& given, std::index_sequence<i...>) {
      static_assert(((!is_optional<i> || is_kept(i) || i > last_differentiable()) && ...));
      Needs needs{};
      size_t edge = 0;
      const auto count = [&](size_t place) {
        const auto at = std::find(Op::differentiable.begin(), Op::differentiable.end(), place);
        if (at != Op::differentiable.end()) {
          needs[static_cast<size_t>(at - Op::differentiable.begin())] = ctx->needs_input_grad(edge);
        }
        ++edge;
      };
      const auto visit = [&]<size_t place>(std::integral_constant<size_t, place>) {
        if constexpr (place > last_differentiable()) {
          return;
        } else if constexpr (is_optional<place>) {
          if (std::get<place>(given).has_value()) count(place);
        } else if constexpr (is_tensor<std::tuple_element_t<place, Arguments>>) {
          count(place);
        }
      };
      (visit(std::integral_constant<size_t, i>()), ...);
      return needs;
    }
    template <size_t i>
    static constexpr bool is_optional =
        std::is_same_v<std::tuple_element_t<i, Arguments>, std::optional<at::Tensor>>;
    static constexpr size_t last_differentiable() {
      return *std::max_element(Op::differentiable.begin(), Op::differentiable.end());
    }
    static constexpr bool is_kept(size_t place) {
      return std::find(Op::kept.begin(), Op::kept.end(), place) != Op::kept.end();
    }
    template <size_t... i>
    static void keep_all(Kept* all, std::index_sequence<i...>, const std::decay_t<Args>&... args) {
      const auto keep = [all](auto place, const auto& x) {
        if constexpr (is_kept(place)) all->add(x);
      };
      (keep(std::integral_constant<size_t, i>(), args), ...);
    }
    template <size_t i>
    static std::tuple_element_t<i, Arguments> recall_at(Recalled* all) {
      using T = std::tuple_element_t<i, Arguments>;
      if constexpr (is_kept(i)) {
        return all->next<T>();
      } else {
        return T{};
      }
    }
    template <size_t... i>
    static Arguments recall_all(Recalled* all, std::index_sequence<i...>) {
      return Arguments{recall_at<i>(all)...};
    }
  };

  static R forward_autograd(Args... args) {
    return FromList<R>::make(node_of<Op>::type::apply(args...));
  }
  static G backward_autograd(BackwardArgs... args) {
    return FromList<G>::make(raise_on_double_backward(
        Op::name, variable_list{tensor_of(args)...},
        [&]() -> variable_list { return as_list(call_backward(args...)); }));
  }
  static R forward_autocast(Args... args) {
    c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
    if constexpr (requires { Op::autocast(args...); }) {
      return std::apply(call_forward, Op::autocast(args...));
    } else {
      const auto type = widest_type({tensor_of(args)...});
      return call_forward(cast_to(args, type)...);
    }
  }

  static void define(torch::Library& m) {
    const auto def = [&](const std::string& schema) {
      m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
    };
    if constexpr (requires { Op::schema(); }) {
      def(Op::name + Op::schema());
      def(backward_name() + Op::backward_schema());
    } else {
      def(std::string(Op::name) + Op::schema);
      def(backward_name() + Op::backward_schema);
    }
    register_op(m, Op::name, &Op::forward, &Op::forward_meta, &forward_autograd, &forward_autocast);
    register_backward(m, backward_name().c_str(), &Op::backward, &Op::backward_meta,
                      &backward_autograd);
  }

 private:
  static std::string backward_name() { return std::string("_") + Op::name + "_backward"; }
};

// A node says by `Op` whose it is.
template <class Self>
struct NodeBase : torch::autograd::Function<Self> {
  template <class... Args>
  static variable_list forward(AutogradContext* ctx, const Args&... args) {
    return Shell<typename Self::Op>::Passes::forward(ctx, args...);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return Shell<typename Self::Op>::Passes::backward(ctx, grads);
  }
};
template <class Own>
struct OpNode : NodeBase<OpNode<Own>> {
  using Op = Own;
};

}  // namespace fastvi
