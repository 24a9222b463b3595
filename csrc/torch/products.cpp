#include "torch/products.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "simd/cpu_isa.h"

namespace fastvi {
namespace {

// torch's compiler calls it for Linear; it is in no header. Boxed, because only its schema is a
// contract.
const std::optional<c10::OperatorHandle>& linear_pointwise() {
  static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return op;
}

}  // namespace

bool products_by_onednn() {
  static const bool pays =
      cpu_lacks_fast_mkl() && at::globalContext().hasMKLDNN() && linear_pointwise().has_value();
  return pays && at::globalContext().userEnabledMkldnn();
}

bool products_by_onednn(const at::Tensor& rows, const at::Tensor& weight) {
  // Its calls take some microseconds more than MKL's.
  constexpr int64_t kFewest = int64_t{1} << 20;
  return rows.is_cpu() && rows.scalar_type() == at::kFloat &&
         weight.size(0) * rows.numel() >= kFewest && products_by_onednn();
}

at::Tensor onednn_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias) {
  torch::jit::Stack stack{
      rows,
      weight,
      bias.defined() ? c10::IValue(bias) : c10::IValue(),
      "none",
      c10::List<std::optional<at::Scalar>>(),
      c10::IValue(),
  };
  linear_pointwise()->callBoxed(stack);
  return std::move(stack.front()).toTensor();
}

}  // namespace fastvi
