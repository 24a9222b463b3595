#include "categorical_sample/categorical_sample.h"

#include <ATen/ops/empty.h>

#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/launch.h"
#include "torch/shell.h"

namespace fastvi::categorical_sample_op {
namespace {

using at::Tensor;
using c10::SymInt;
// log_prob, value: torch.library.opcheck adds outputs up in the type of the first.
using Outputs = std::tuple<Tensor, Tensor>;
using OptionalSymInt = std::optional<SymInt>;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "categorical_sample";

// The shape [K, *batch]; refuses what the op does not take.
c10::SymDimVector check(const Tensor& logits, const Tensor& key, const OptionalSymInt& num_samples,
                        const SymInt& sample_offset, const OptionalTensor& sample_index) {
  check_floating(kOp, "logits", logits);
  check_rank(kOp, "logits", logits, num_samples.has_value() ? 1 : 2);
  TORCH_CHECK_VALUE(logits.sym_size(-1) >= 1, kOp,
                    ": expected logits to have at least one class, got shape ", logits.sym_sizes());
  check_key(kOp, key, logits, "logits");
  TORCH_CHECK_VALUE(sample_offset >= 0, kOp, ": expected sample_offset to be at least 0, got ",
                    sample_offset);
  c10::SymDimVector shape(logits.sym_sizes().begin(), logits.sym_sizes().end() - 1);
  if (num_samples.has_value()) {
    check_num_samples(kOp, *num_samples);
    shape.insert(shape.begin(), *num_samples);
  }
  check_rows(kOp, shape[0], sample_offset, c10::SymIntArrayRef(shape).slice(1));
  check_sample_index(kOp, sample_index, shape, logits, "logits");
  return shape;
}

// The part of the parameters that the logits decide, prepared; `normaliser` holds what it makes.
CategoricalSampleParams prepared(const Tensor& logits, int64_t rows, Tensor* up_to,
                                 Tensor* normaliser) {
  const auto acc = logits.options().dtype(accumulate_type(logits.scalar_type()));
  CategoricalSampleParams p{};
  p.dtype = dtype_of(logits);
  p.logits = logits.const_data_ptr();
  p.classes = logits.size(-1);
  p.logits_rows = std::max<int64_t>(1, logits.numel() / p.classes);
  p.rows = rows;
  if (rows == 0) return p;
  *normaliser = at::empty({p.logits_rows, 3}, acc);
  p.normaliser = normaliser->mutable_data_ptr();
  if (up_to != nullptr) {
    *up_to = empty_large({p.logits_rows, p.classes}, logits.options().dtype(at::kLong));
    p.up_to = up_to->mutable_data_ptr<int64_t>();
  }
  launch<categorical_sample_prepare>(logits, p, p.logits_rows, 2 * p.classes);
  return p;
}

struct CategoricalSample {
  static constexpr const char* name = kOp;
  static constexpr const char* schema =
      "(Tensor logits, Tensor key, SymInt? num_samples=None, SymInt sample_offset=0, "
      "Tensor? sample_index=None) -> (Tensor log_prob, Tensor value)";
  static constexpr const char* backward_schema =
      "(Tensor grad, Tensor value, Tensor logits) -> Tensor";
  static constexpr std::array<size_t, 1> differentiable{0};
  static constexpr std::array<size_t, 1> kept{0};
  static constexpr std::array<size_t, 1> kept_results{1}, constant_results{1};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList results) {
    return std::tuple(grads[0], results[0], std::get<0>(arguments));
  }

  static Outputs forward(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                         SymInt sample_offset, const OptionalTensor& sample_index) {
    const auto sym_shape = check(logits, key, num_samples, sample_offset, sample_index);
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    const Tensor l = logits.contiguous(), k = key.contiguous();
    Tensor up_to, normaliser;
    CategoricalSampleParams p = prepared(l, c10::multiply_integers(shape), &up_to, &normaliser);
    p.key = k.const_data_ptr<int64_t>();
    const int64_t offset = sample_offset.expect_int(),
                  batch = c10::multiply_integers(shape.slice(1));
    const Tensor numbers = sample_numbers(kOp, sample_index, offset, batch);
    p.samples = {numbers_or_null(numbers), offset, batch};
    const Tensor value = empty_large(shape, l.options().dtype(at::kLong));
    const Tensor log_prob = empty_large(shape, l.options().dtype(accumulate_type(l.scalar_type())));
    p.value = value.mutable_data_ptr<int64_t>();
    p.log_prob = log_prob.mutable_data_ptr();
    // A draw costs about as much as the other work on a few dozen elements.
    launch<categorical_sample>(l, p, p.rows, 24);
    return {log_prob, value};
  }

  static Outputs forward_meta(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                              SymInt sample_offset, const OptionalTensor& sample_index) {
    const auto shape = check(logits, key, num_samples, sample_offset, sample_index);
    const auto acc = logits.options().dtype(accumulate_type(logits.scalar_type()));
    return {at::empty_symint(shape, acc),
            at::empty_symint(shape, logits.options().dtype(at::kLong))};
  }

  static Tensor backward(const Tensor& grad, const Tensor& value, const Tensor& logits) {
    check_given(kOp, "grad", grad, value.sizes(), accumulate_type(logits.scalar_type()), logits);
    const Tensor g = grad.contiguous(), l = logits.contiguous(), drawn = value.contiguous();
    const Tensor grad_logits = empty_large(l.sizes(), l.options());
    Tensor normaliser;
    CategoricalSampleParams p = prepared(l, value.numel(), nullptr, &normaliser);
    if (p.rows == 0) return grad_logits;
    p.grad_log_prob = g.const_data_ptr();
    p.drawn = drawn.const_data_ptr<int64_t>();
    p.grad_logits = grad_logits.mutable_data_ptr();
    launch<categorical_sample_backward>(l, p, p.logits_rows,
                                        2 * p.classes + 2 * (p.rows / p.logits_rows));
    return grad_logits;
  }
  static Tensor backward_meta(const Tensor&, const Tensor&, const Tensor& logits) {
    return at::empty_symint(logits.sym_sizes(), logits.options());
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<CategoricalSample>::define(m); }

}  // namespace fastvi::categorical_sample_op
