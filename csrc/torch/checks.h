// Argument checks in the words of the library: "<op>: expected <argument> to be ..., got ...".
// They ask only for symbolic sizes, so one function serves real tensors and fake ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "simd/macros.h"

namespace fastvi {

inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Dtype::f64;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::f16;
    default:
      return Dtype::f32;
  }
}

// The type of accumulations, densities and bounds: float32, or float64 for float64.
inline at::ScalarType accumulate_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_floating(const char* op, const char* name, const at::Tensor& t) {
  const auto type = t.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, op,
      ": expected ", name, " to be a float32, float64, bfloat16 or float16 tensor, got ", type);
}

inline void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t at_least) {
  TORCH_CHECK_VALUE(t.dim() >= at_least, op, ": expected ", name, " to have at least ", at_least,
                    " dimension(s), got shape ", t.sym_sizes());
}

inline void check_like(const char* op, const char* name, const at::Tensor& t,
                       const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_TYPE(t.scalar_type() == other.scalar_type(), op, ": expected ", name,
                   " to have the dtype of ", other_name, ", ", other.scalar_type(), ", got ",
                   t.scalar_type());
  TORCH_CHECK_VALUE(t.device() == other.device(), op, ": expected ", name,
                    " to be on the device of ", other_name, ", ", other.device(), ", got ",
                    t.device());
}

// Widens `shape` to what it and `sizes` broadcast to; false where they do not.
inline bool broadcast_into(c10::SymDimVector* shape, c10::SymIntArrayRef sizes) {
  if (sizes.size() > shape->size())
    shape->insert(shape->begin(), sizes.size() - shape->size(), c10::SymInt(1));
  const size_t offset = shape->size() - sizes.size();
  for (size_t d = 0; d < sizes.size(); ++d) {
    c10::SymInt& size = (*shape)[offset + d];
    if (sizes[d] == 1 || sizes[d] == size) continue;
    if (size != 1) return false;
    size = sizes[d];
  }
  return true;
}

inline void check_num_samples(const char* op, const c10::SymInt& num_samples) {
  TORCH_CHECK_VALUE(num_samples >= 1, op, ": expected num_samples to be at least 1, got ",
                    num_samples);
}

// The key of the noise: two int64, seed and stream, beside the data.
inline void check_key(const char* op, const at::Tensor& key, const at::Tensor& like,
                      const char* like_name = "loc") {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kLong, op, ": expected key to be an int64 tensor, got ",
                   key.scalar_type());
  TORCH_CHECK_VALUE(key.dim() == 1 && key.sym_size(0) == 2, op,
                    ": expected key to have shape [2], got ", key.sym_sizes());
  TORCH_CHECK_VALUE(key.device() == like.device(), op, ": expected key to be on the device of ",
                    like_name, ", ", like.device(), ", got ", key.device());
}

// The noise of a call is numbered by rows, (sample_offset + k) B + b: past 2^63 it would repeat.
inline void check_rows(const char* op, const c10::SymInt& num_samples,
                       const c10::SymInt& sample_offset, c10::SymIntArrayRef batch) {
  // Samples from the first on that are too many do not fit in memory either.
  if (sample_offset.maybe_as_int() == 0) return;
  c10::SymInt data = 1;
  for (const auto& size : batch) data = data * size;
  // A size that may be any is checked when it is known: here it would limit an exported program.
  if (data.is_symbolic() || num_samples.is_symbolic() || sample_offset.is_symbolic()) return;
  if (data == 0) return;
  const c10::SymInt most = c10::SymInt(std::numeric_limits<int64_t>::max()) / data - num_samples;
  TORCH_CHECK_VALUE(sample_offset <= most, op, ": expected sample_offset to be at most ", most,
                    " for ", num_samples, " samples of ", data, " data, got ", sample_offset);
}

// The numbers of the samples, [K, *batch], in place of 0 .. K - 1.
inline void check_sample_index(const char* op, const std::optional<at::Tensor>& index,
                               c10::SymIntArrayRef sizes, const at::Tensor& like,
                               const char* like_name = "loc") {
  if (!index.has_value()) return;
  TORCH_CHECK_TYPE(index->scalar_type() == at::kLong, op,
                   ": expected sample_index to be an int64 tensor, got ", index->scalar_type());
  TORCH_CHECK_VALUE(index->sym_sizes() == sizes, op, ": expected sample_index to have shape ",
                    sizes, ", got ", index->sym_sizes());
  TORCH_CHECK_VALUE(index->device() == like.device(), op,
                    ": expected sample_index to be on the device of ", like_name, ", ",
                    like.device(), ", got ", index->device());
}

// The same, as the kernels read it; undefined where there is none. On a CPU a number that no sample
// has is refused; elsewhere that would wait for the device.
inline at::Tensor sample_numbers(const char* op, const std::optional<at::Tensor>& index,
                                 int64_t sample_offset, int64_t batch) {
  if (!index.has_value()) return {};
  at::Tensor numbers = index->contiguous();
  if (!numbers.is_cpu()) return numbers;
  const int64_t* data = numbers.const_data_ptr<int64_t>();
  int64_t least = 0, largest = 0;
  for (int64_t i = 0; i < numbers.numel(); ++i) {
    least = std::min(least, data[i]);
    largest = std::max(largest, data[i]);
  }
  TORCH_CHECK_VALUE(least >= 0, op, ": expected sample_index to be at least 0, got ", least);
  const int64_t most =
      std::numeric_limits<int64_t>::max() / std::max<int64_t>(1, batch) - 1 - sample_offset;
  TORCH_CHECK_VALUE(largest <= most, op, ": expected sample_index to be at most ", most, " for ",
                    batch, " data and sample_offset ", sample_offset, ", got ", largest);
  return numbers;
}

inline const int64_t* numbers_or_null(const at::Tensor& numbers) {
  return numbers.defined() ? numbers.const_data_ptr<int64_t>() : nullptr;
}

// What a backward is given. Autograd's gradients fit; those of a direct call need not.
inline void check_given(const char* op, const char* name, const at::Tensor& t,
                        at::IntArrayRef sizes, at::ScalarType type, const at::Tensor& like) {
  TORCH_CHECK_TYPE(t.scalar_type() == type, op, ": expected ", name, " to be ", type, ", got ",
                   t.scalar_type());
  TORCH_CHECK_VALUE(t.sizes() == sizes, op, ": expected ", name, " to have shape ", sizes, ", got ",
                    t.sizes());
  TORCH_CHECK_VALUE(t.device() == like.device(), op, ": expected ", name, " to be on ",
                    like.device(), ", got ", t.device());
}

inline const void* data_or_null(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

}  // namespace fastvi
