// Matrix products of a Linear, by the faster of torch's own libraries. torch's float32 products are
// MKL's, whose AVX-512 code is for Intel's processors alone. On others oneDNN, which torch has too,
// takes less than half the time.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastvi {

// Whether float32 products on this machine's CPU run on oneDNN, and so outrun torch's own Linear.
bool products_by_onednn();

// Whether the products of a Linear's input [rows, H] and weight [F, H] should.
bool products_by_onednn(const at::Tensor& rows, const at::Tensor& weight);

// rows weight^T + bias, [n, m], for rows [n, k], weight [m, k], of any strides, and a bias [m] that
// may be undefined. No size is 0, and products_by_onednn() holds.
at::Tensor onednn_linear(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace fastvi
