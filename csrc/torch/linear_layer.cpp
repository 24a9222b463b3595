// A Linear, and the activation behind it, whose products oneDNN takes where it is faster: forward,
// and each of the two backward; and several of them forward, by rows. The values are those of the
// modules up to rounding.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "torch/empty.h"
#include "torch/gradients.h"
#include "torch/products.h"
#include "torch/row_blocks.h"

namespace fastvi {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor forward_of(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  Activation activation) {
  const Tensor b = or_undefined(bias);
  return products_by_onednn(Product::forward, input, weight, input.size(0), activation)
             ? onednn_linear(input, weight, b, activation)
             : torch_linear(input, weight, b, activation);
}

// From the gradient of the output to that of the Linear's.
Tensor before_activation(const Tensor& grad, const Tensor& output, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return at::threshold_backward(grad, output, 0);
    case Activation::tanh:
      return at::tanh_backward(grad, output);
    case Activation::sigmoid:
      return at::sigmoid_backward(grad, output);
    default:
      return grad;
  }
}

class LinearLayer : public torch::autograd::Function<LinearLayer> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                        const OptionalTensor& bias, int64_t activation) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto kind = static_cast<Activation>(activation);
    TORCH_CHECK(kind < Activation::gelu, "the gradient of GELU needs the outputs before it");
    const Tensor output = forward_of(input, weight, bias, kind);
    ctx->set_materialize_grads(false);
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->save_for_backward({input, weight, kind == Activation::none ? Tensor() : output});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(4);
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1];
    const auto kind = static_cast<Activation>(ctx->saved_data["activation"].toInt());
    const Tensor d = before_activation(grads[0], saved[2], kind);
    // oneDNN's op has no derivative, and no rule for several gradients at once.
    const bool plain =
        !at::GradMode::is_enabled() && !at::areAnyTensorSubclassLike({d, input, weight});
    const auto by_onednn = [&](Product product) {
      return plain && products_by_onednn(product, d, weight, d.size(0));
    };
    variable_list found(4);
    if (ctx->needs_input_grad(0)) {
      found[0] = by_onednn(Product::grad_input) ? onednn_linear(d, weight.t(), Tensor())
                                                : at::mm(d, weight);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] =
          by_onednn(Product::grad_weight) ? onednn_weight_gradient(d, input) : at::mm(d.t(), input);
    }
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) found[2] = d.sum(0);
    return found;
  }
};

bool requires_grad(const Tensor& t) { return t.defined() && t.requires_grad(); }

Tensor linear_layer(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                    const std::string& activation) {
  const Activation kind = activation_of(activation);
  if (at::GradMode::is_enabled() &&
      (requires_grad(input) || requires_grad(weight) || requires_grad(or_undefined(bias)))) {
    return LinearLayer::apply(input, weight, bias, static_cast<int64_t>(kind));
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return forward_of(input, weight, bias, kind);
}

using Layer = std::tuple<Tensor, OptionalTensor, std::string>;  // weight, bias, activation

// In how many blocks the rows of layers go, each one thread's, whose widest outputs that are read
// again are so wide; 0 where the layers are better run one by one.
int64_t blocks_of_rows(int64_t rows, int64_t width) {
  const int64_t most = rows_in_cache(width * static_cast<int64_t>(sizeof(float)));
  if (most == 0 || rows <= most) return 0;
  const int64_t blocks = ceil_div(rows, most);
  return blocks < at::get_num_threads() ? 0 : blocks_for_threads(blocks);
}

// Layers one after the other, without a graph. A thread takes some rows through all of them: what
// is between two layers stays in its cache, and no thread waits for another.
class LayersByRows {
 public:
  LayersByRows(const Tensor& input, const std::vector<Layer>& layers, int64_t blocks)
      : input_(input.contiguous()),
        layers_(layers),
        block_rows_(ceil_div(input_.size(0), std::max<int64_t>(1, blocks))) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto& [weight, bias, name] = layers[i];
      const Activation activation = activation_of(name);
      // Which is faster is measured by all threads, for all rows.
      const bool by_onednn =
          products_by_onednn(Product::forward, input_, weight, input_.size(0), activation);
      steps_.push_back({activation, by_onednn});
      if (!by_onednn && i + 1 < layers.size()) widest_ = std::max(widest_, weight.size(0));
    }
  }

  Tensor run() const {
    const int64_t rows = input_.size(0);
    const Tensor out = empty_large({rows, std::get<0>(layers_.back()).size(0)}, input_.options());
    if (rows == 0) return out;
    // What two layers put out, one the input of the other.
    const Tensor buffers =
        empty_large({at::get_num_threads(), 2, block_rows_ * widest_}, input_.options());
    for_each_block(ceil_div(rows, block_rows_), /*by_threads=*/true,
                   [&](int64_t block, int64_t thread) {
                     const int64_t first = block * block_rows_;
                     const int64_t count = std::min(block_rows_, rows - first);
                     run_block(input_.narrow(0, first, count), buffers.select(0, thread),
                               out.narrow(0, first, count));
                   });
    return out;
  }

 private:
  struct Step {
    Activation activation;
    bool by_onednn;
  };

  void run_block(Tensor rows, const Tensor& buffers, const Tensor& out) const {
    for (size_t i = 0; i < layers_.size(); ++i) {
      const auto& [weight, bias, name] = layers_[i];
      const bool is_last = i + 1 == layers_.size();
      if (steps_[i].by_onednn) {
        const Tensor made = onednn_linear(rows, weight, or_undefined(bias), steps_[i].activation);
        rows = is_last ? out.copy_(made) : made;
        continue;
      }
      const int64_t size = rows.size(0) * weight.size(0);
      const Tensor result =
          is_last
              ? out
              : buffers.select(0, i % 2).narrow(0, 0, size).view({rows.size(0), weight.size(0)});
      torch_linear_into(result, rows, weight, or_undefined(bias), steps_[i].activation);
      rows = result;
    }
  }

  Tensor input_;
  const std::vector<Layer>& layers_;
  std::vector<Step> steps_;
  int64_t block_rows_, widest_ = 1;
};

Tensor linear_layers(const Tensor& input, const std::vector<Layer>& layers, int64_t blocks) {
  TORCH_CHECK(!layers.empty(), "linear_layers: expected at least one layer");
  at::AutoDispatchBelowADInplaceOrView guard;
  return LayersByRows(input, layers, blocks).run();
}

// Whether any product of a layer is oneDNN's: forward, and those of the gradients that are wanted.
bool layer_by_onednn(int64_t rows, int64_t in, int64_t out, const std::string& activation,
                     bool input_grad, bool weight_grad) {
  const auto by_onednn = [&](Product product, Activation kind) {
    return product_by_onednn({product, kind, rows, in, out});
  };
  // No short cut: all classes of a layer are measured at its first call.
  const bool forward = by_onednn(Product::forward, activation_of(activation));
  const bool to_input = input_grad && by_onednn(Product::grad_input, Activation::none);
  const bool to_weight = weight_grad && by_onednn(Product::grad_weight, Activation::none);
  return forward || to_input || to_weight;
}

namespace py = pybind11;

py::list choices() {
  py::list list;
  for (const auto& [least, times, onednn] : product_choices()) {
    list.append(py::make_tuple(product_name(least.product), activation_name(least.activation),
                               least.rows, least.in, least.out, onednn, times.torch, times.onednn));
  }
  return list;
}

using PythonTimer =
    std::function<std::pair<double, double>(const char*, const char*, int64_t, int64_t, int64_t)>;
void restart(const PythonTimer& timer) {
  ProductTimer own;
  if (timer) {
    own = [timer](const ProductShape& shape) {
      const auto [by_torch, by_onednn] =
          timer(product_name(shape.product), activation_name(shape.activation), shape.rows,
                shape.in, shape.out);
      return ProductTimes{by_torch, by_onednn};
    };
  }
  restart_products(std::move(own));
}

void bind(py::module_& m) {
  using py::arg;
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("linear_layer", &linear_layer, arg("input"), arg("weight"), arg("bias"), arg("activation"),
        no_gil, "activation(input weight^T + bias), for float32 matrices on a CPU.");
  m.def("blocks_of_rows", &blocks_of_rows, arg("rows"), arg("width"),
        "In how many blocks linear_layers should take the rows; 0 if the modules are faster.");
  m.def("linear_layers", &linear_layers, arg("input"), arg("layers"), arg("blocks"), no_gil,
        "Layers (weight, bias, activation) one after the other, by rows and without a graph.");
  m.def("layer_by_onednn", &layer_by_onednn, arg("rows"), arg("in_features"), arg("out_features"),
        arg("activation"), arg("input_grad"), arg("weight_grad"), no_gil,
        "Whether linear_layer is faster than the modules.");
  m.def("product_setting", &product_setting, "torch, onednn or auto, as FASTVI_PRODUCTS says.");
  m.def("product_choices", &choices,
        "Product, activation, least rows, in and out of the class, whether oneDNN, seconds of "
        "torch, of oneDNN.");
  m.def("restart_products", &restart, arg("timer") = PythonTimer(),
        "For tests: forget the choices, read the environment again, measure by a function.");
}

const bool bound = [] {
  bindings().push_back(&bind);
  return true;
}();

}  // namespace
}  // namespace fastvi
