// What every differentiable op needs around its own formula.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <functional>
#include <string>

#include "torch/binding.h"

namespace fastvi {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Computes a backward whose own derivative raises. Left alone, torch would return zeros silently.
class RaiseOnDoubleBackward : public torch::autograd::Function<RaiseOnDoubleBackward> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList /*inputs*/,
                               const std::string& op,
                               const std::function<variable_list()>& compute) {
    ctx->saved_data["op"] = op;
    at::AutoDispatchBelowADInplaceOrView guard;
    return compute();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    const std::string op = ctx->saved_data["op"].toStringRef();
    TORCH_CHECK(false, "double backward of ", op, " is not supported; use fastvi.ops.", op,
                ".reference");
  }
};

inline variable_list raise_on_double_backward(const std::string& op, at::TensorList inputs,
                                              const std::function<variable_list()>& compute) {
  // Nobody can differentiate what is computed without a graph.
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return compute();
  }
  variable_list defined;
  for (const auto& t : inputs) {
    if (t.defined()) defined.push_back(t);
  }
  // As a list: a vector would not be recognised as variables, and nothing would be recorded.
  return RaiseOnDoubleBackward::apply(at::TensorList(defined), op, compute);
}

// Autocast: tensors of one call meet in the widest of their types; nothing is made narrower, and
// the kernels accumulate in float32 whatever they are given.
inline at::ScalarType widest_type(std::initializer_list<at::Tensor> tensors) {
  auto widest = at::ScalarType::Undefined;
  for (const auto& t : tensors) {
    if (!t.defined() || !t.is_floating_point()) continue;
    widest = widest == at::ScalarType::Undefined ? t.scalar_type()
                                                 : c10::promoteTypes(widest, t.scalar_type());
  }
  return widest;
}
inline at::Tensor cast_to(const at::Tensor& t, at::ScalarType type) {
  const bool fits = !t.defined() || !t.is_floating_point() || t.scalar_type() == type;
  return fits || type == at::ScalarType::Undefined ? t : t.to(type);
}
inline std::optional<at::Tensor> cast_to(const std::optional<at::Tensor>& t, at::ScalarType type) {
  return t.has_value() ? std::optional(cast_to(*t, type)) : t;
}
// The value of a log-density may stay float32 where its parameters are narrower; else it follows
// them.
inline at::Tensor cast_value(const at::Tensor& value, at::ScalarType type) {
  const bool keeps =
      value.scalar_type() == at::kFloat && (type == at::kBFloat16 || type == at::kHalf);
  return keeps ? value : cast_to(value, type);
}

inline std::optional<at::Tensor> or_none(const at::Tensor& t) {
  return t.defined() ? std::optional(t) : std::nullopt;
}
inline at::Tensor or_undefined(const std::optional<at::Tensor>& t) {
  return t.value_or(at::Tensor());
}

inline c10::DispatchKeySet autocast_keys() {
  return c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA});
}

// Sparse, nested, quantised and MKL-DNN tensors have backends of their own. There every op is this
// one, so that telling them apart costs the others nothing.
inline void refuse_backend(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const auto values = torch::jit::last(*stack, arguments.size());
  const auto name = schema.name().substr(schema.name().rfind(':') + 1);
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!values[i].isTensor()) continue;
    const at::Tensor& t = values[i].toTensor();
    if (!t.defined()) continue;
    const bool dense = !t.is_nested() && !t.is_quantized() && t.layout() == at::kStrided;
    // A width or a rate goes by the name of its kind: spread, or scale where it is the log_scale.
    const auto kind = schema.argumentIndexWithName("kind");
    const std::string kind_of = kind.has_value() ? values[*kind].toStringRef() : "";
    const auto& own = arguments[i].name();
    const auto& said = own == "spread" || kind_of == "log_" + own ? kind_of : own;
    TORCH_CHECK_TYPE(dense, name, ": expected ", said, " to be a dense tensor, got ", t.toString());
  }
  TORCH_CHECK_TYPE(false, name, ": expected dense tensors, got another backend");
}

template <class F>
void register_backward(torch::Library& m, const char* name, F kernel, F meta, F autograd) {
  m.impl(name, torch::dispatch(c10::DispatchKey::CPU, kernel));
  m.impl(name, torch::dispatch(c10::DispatchKey::CUDA, kernel));
  m.impl(name, torch::dispatch(c10::DispatchKey::Meta, meta));
  m.impl(name, torch::dispatch(c10::DispatchKey::Autograd, autograd));
  using Key = c10::DispatchKey;
  for (const auto key : {Key::SparseCPU, Key::SparseCUDA, Key::SparseCsrCPU, Key::SparseCsrCUDA,
                         Key::QuantizedCPU, Key::QuantizedCUDA, Key::MkldnnCPU,
                         Key::NestedTensorCPU, Key::NestedTensorCUDA, Key::AutogradNestedTensor}) {
    m.impl(name,
           torch::dispatch(key, torch::CppFunction::makeFromBoxedFunction<&refuse_backend>()));
  }
}

// One op under every key it answers to. The kernel serves CPU and CUDA: launch() tells them apart.
template <class F>
void register_op(torch::Library& m, const char* name, F kernel, F meta, F autograd, F autocast) {
  register_backward(m, name, kernel, meta, autograd);
  m.impl(name, torch::dispatch(c10::DispatchKey::AutocastCPU, autocast));
  m.impl(name, torch::dispatch(c10::DispatchKey::AutocastCUDA, autocast));
  bind_op_later(name, kernel);
}

}  // namespace fastvi
