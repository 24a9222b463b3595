// Matrix products of a Linear in float32 on a CPU, by the faster of torch's own libraries. torch's
// are MKL's, whose best code is for Intel's processors alone; on others oneDNN, which torch has
// too, is up to twice as fast. oneDNN applies an activation to what is still in its registers.
#pragma once

#include <ATen/core/Tensor.h>

#include "torch/product_choice.h"

namespace fastvi {

// Whether torch has oneDNN, and the op that its compiler calls for a Linear.
bool has_onednn();

// Whether oneDNN takes a product of the Linear of `weight`, [out, in], for so many rows like these.
bool products_by_onednn(Product product, const at::Tensor& like, const at::Tensor& weight,
                        int64_t rows, Activation activation = Activation::none);

// activation(rows weight^T + bias), [n, m], for rows [n, k], weight [m, k], of any strides, and a
// bias [m] that may be undefined. No size is 0, and has_onednn() holds.
at::Tensor onednn_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias,
                         Activation activation = Activation::none);
// d^T h, [out, in], for d [rows, out] and h [rows, in].
at::Tensor onednn_weight_gradient(const at::Tensor& d, const at::Tensor& h);

// The same by torch's library, in the words of a Linear and of an activation.
at::Tensor torch_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias,
                        Activation activation);

// The same into a result that is there.
void torch_linear_into(at::Tensor result, const at::Tensor& rows, const at::Tensor& weight,
                       const at::Tensor& bias, Activation activation);

// The seconds that either library takes for a product of such sizes, in some milliseconds; NaN
// where other work on the machine leaves that open.
ProductTimes time_product(const ProductShape& shape);

}  // namespace fastvi
