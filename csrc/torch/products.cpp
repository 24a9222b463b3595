#include "torch/products.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <vector>

#include "torch/gradients.h"

namespace fastvi {
namespace {

// torch's compiler calls it for Linear; it is in no header. Boxed, because only its schema is a
// contract.
const std::optional<c10::OperatorHandle>& linear_pointwise() {
  static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return op;
}

// oneDNN's names: an activation, and how it is computed.
std::pair<const char*, const char*> of_onednn(Activation activation) {
  switch (activation) {
    case Activation::tanh:
      return {"tanh", nullptr};
    case Activation::sigmoid:
      return {"sigmoid", nullptr};
    case Activation::gelu:
      return {"gelu", "none"};
    case Activation::gelu_tanh:
      return {"gelu", "tanh"};
    default:
      return {"none", nullptr};
  }
}

double seconds(const std::function<at::Tensor()>& compute) {
  const auto begin = std::chrono::steady_clock::now();
  compute();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The least of many times, which counts where others come near it: on a machine with other work all
// but a few are too long.
class Least {
 public:
  double add(double seconds) {
    times_.insert(std::upper_bound(times_.begin(), times_.end(), seconds), seconds);
    return seconds;
  }
  double seconds() const { return times_.front(); }
  size_t count() const { return times_.size(); }
  bool is_seen_again() const {
    constexpr size_t kTimes = 5;
    return times_.size() >= kTimes && times_[kTimes - 1] < 1.1 * times_.front();
  }

 private:
  std::vector<double> times_;
};

at::Tensor some_numbers(int64_t rows, int64_t columns) {
  return at::linspace(-1, 1, rows * columns, at::kFloat).view({rows, columns});
}

void apply_in_place(at::Tensor x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      at::relu_(x);
      break;
    case Activation::tanh:
      at::tanh_(x);
      break;
    case Activation::sigmoid:
      at::sigmoid_(x);
      break;
    case Activation::gelu:
      at::gelu_(x, "none");
      break;
    case Activation::gelu_tanh:
      at::gelu_(x, "tanh");
      break;
    case Activation::none:
      break;
  }
}

}  // namespace

bool has_onednn() {
  static const bool has = at::globalContext().hasMKLDNN() && linear_pointwise().has_value();
  return has;
}

bool products_by_onednn(Product product, const at::Tensor& like, const at::Tensor& weight,
                        int64_t rows, Activation activation) {
  return like.is_cpu() && like.scalar_type() == at::kFloat &&
         product_by_onednn({product, activation, rows, weight.size(1), weight.size(0)});
}

at::Tensor onednn_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias,
                         Activation activation) {
  const auto [name, algorithm] = of_onednn(activation);
  torch::jit::Stack stack{
      rows,
      weight,
      bias.defined() ? c10::IValue(bias) : c10::IValue(),
      name,
      c10::List<std::optional<at::Scalar>>(),
      algorithm == nullptr ? c10::IValue() : c10::IValue(algorithm),
  };
  linear_pointwise()->callBoxed(stack);
  at::Tensor out = std::move(stack.front()).toTensor();
  // oneDNN's own makes 0 of NaN.
  return activation == Activation::relu ? out.relu_() : out;
}

at::Tensor onednn_weight_gradient(const at::Tensor& d, const at::Tensor& h) {
  // The first operand is copied to lie in order: the smaller.
  return h.size(1) <= d.size(1) ? onednn_linear(h.t(), d.t(), at::Tensor()).t().contiguous()
                                : onednn_linear(d.t(), h.t(), at::Tensor());
}

void torch_linear_into(at::Tensor result, const at::Tensor& rows, const at::Tensor& weight,
                       const at::Tensor& bias, Activation activation) {
  if (bias.defined()) {
    at::addmm_out(result, bias, rows, weight.t());
  } else {
    at::mm_out(result, rows, weight.t());
  }
  apply_in_place(result, activation);
}

at::Tensor torch_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias,
                        Activation activation) {
  const at::Tensor result = at::linear(rows, weight, or_none(bias));
  apply_in_place(result, activation);
  return result;
}

ProductTimes time_product(const ProductShape& shape) {
  constexpr int64_t kMost = int64_t{1} << 26;          // multiplications
  constexpr size_t kMostRounds = 8;                    // if they take longer than that
  constexpr double kEnough = 3e-3, kPatience = 50e-3;  // seconds
  // Of a machine too busy to tell.
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr ProductTimes unknown{kNan, kNan};
  // Modes of torch, such as a tracer's, are to see nothing of it.
  const at::AutoDispatchBelowADInplaceOrView no_graph;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_keys());
  const c10::impl::ExcludeDispatchKeyGuard no_modes(c10::python_ks);

  const int64_t rows = std::min(shape.rows, std::max<int64_t>(16, kMost / (shape.in * shape.out)));
  const at::Tensor input = some_numbers(rows, shape.in);
  const at::Tensor d = some_numbers(rows, shape.out);
  const at::Tensor weight = some_numbers(shape.out, shape.in);
  const at::Tensor bias = some_numbers(1, shape.out).view({shape.out});
  std::function<at::Tensor()> by_torch, by_onednn;
  switch (shape.product) {
    case Product::forward:
      by_torch = [&] { return torch_linear(input, weight, bias, shape.activation); };
      by_onednn = [&] { return onednn_linear(input, weight, bias, shape.activation); };
      break;
    case Product::grad_input:
      by_torch = [&] { return at::mm(d, weight); };
      by_onednn = [&] { return onednn_linear(d, weight.t(), at::Tensor()); };
      break;
    case Product::grad_weight:
      by_torch = [&] { return at::mm(d.t(), input); };
      by_onednn = [&] { return onednn_weight_gradient(d, input); };
      break;
  }
  // The first call makes code, and threads.
  by_torch();
  by_onednn();
  double spent = 0;
  size_t ahead = 0;  // rounds in which oneDNN was
  Least torch, onednn;
  while (spent < kEnough || !torch.is_seen_again() || !onednn.is_seen_again()) {
    if (spent > kPatience && torch.count() >= kMostRounds) return unknown;
    const ProductTimes now{torch.add(seconds(by_torch)), onednn.add(seconds(by_onednn))};
    ahead += is_clearly_faster(now);
    spent += now.torch + now.onednn;
  }
  const ProductTimes least{torch.seconds(), onednn.seconds()};
  // Chance favours one of two that are alike in some rounds, but not in four of five.
  return is_clearly_faster(least) && 5 * ahead < 4 * torch.count() ? unknown : least;
}

}  // namespace fastvi
