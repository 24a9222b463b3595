// Every op as a plain function of the extension module: half the overhead of torch.ops. An op is
// bound where it is registered; the names of its arguments are those of its schema.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace fastvi {

// The typed handle of a registered op; the look-up by name happens once per op.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// What the module is to do with itself when it is made.
std::vector<std::function<void(pybind11::module_&)>>& bindings();

// A dual tensor of forward-mode AD; under torch.func there is none, and the reference runs.
inline bool is_dual(const at::Tensor& t) {
  return t.defined() && t._fw_grad(/*level=*/0).defined();
}
inline bool is_dual(const std::optional<at::Tensor>& t) { return t.has_value() && is_dual(*t); }
template <class T>
bool is_dual(const T&) {
  return false;
}

template <class R, class... Args, size_t... i>
void bind_op(pybind11::module_& m, const std::string& name, std::index_sequence<i...>) {
  const auto op = find_op<R(Args...)>(("fastvi::" + name).c_str());
  const auto& arguments = op.schema().arguments();
  m.def(
      name.c_str(),
      [op, name](Args... args) -> R {
        TORCH_CHECK(!(is_dual(args) || ...), name,
                    ": expected no tangents outside torch.func, got a dual tensor of forward-mode "
                    "AD; use torch.func.jvp, or fastvi.ops.",
                    name, ".reference");
        return op.call(args...);
      },
      pybind11::arg(arguments[i].name().c_str())...,
      pybind11::call_guard<pybind11::gil_scoped_release>());
}

// `kernel` is there for its type.
template <class R, class... Args>
void bind_op_later(const std::string& name, R (* /*kernel*/)(Args...)) {
  bindings().push_back([name](pybind11::module_& m) {
    bind_op<R, Args...>(m, name, std::index_sequence_for<Args...>());
  });
}

}  // namespace fastvi
