#include "bernoulli_sample/bernoulli_sample.h"

#include <ATen/ops/empty.h>

#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/launch.h"
#include "torch/row_sum.h"
#include "torch/shell.h"

namespace fastvi::bernoulli_sample_op {
namespace {

using at::Tensor;
using c10::SymInt;
using Outputs = std::tuple<Tensor, Tensor>;
using OptionalSymInt = std::optional<SymInt>;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "bernoulli_sample";

// The shape [K, *batch, D]; refuses what the op does not take.
c10::SymDimVector check(const Tensor& logits, const Tensor& key, const OptionalSymInt& num_samples,
                        const SymInt& sample_offset, int64_t event_dims,
                        const OptionalTensor& sample_index) {
  TORCH_CHECK_VALUE(event_dims == 0 || event_dims == 1, kOp,
                    ": expected event_dims to be 0 or 1, got ", event_dims);
  check_floating(kOp, "logits", logits);
  check_rank(kOp, "logits", logits, num_samples.has_value() ? 1 : 2);
  check_key(kOp, key, logits, "logits");
  TORCH_CHECK_VALUE(sample_offset >= 0, kOp, ": expected sample_offset to be at least 0, got ",
                    sample_offset);
  c10::SymDimVector shape(logits.sym_sizes().begin(), logits.sym_sizes().end());
  if (num_samples.has_value()) {
    check_num_samples(kOp, *num_samples);
    shape.insert(shape.begin(), *num_samples);
  }
  check_rows(kOp, shape[0], sample_offset, c10::SymIntArrayRef(shape).slice(1, shape.size() - 2));
  check_sample_index(kOp, sample_index, c10::SymIntArrayRef(shape).slice(0, shape.size() - 1),
                     logits, "logits");
  return shape;
}

struct BernoulliSample {
  static constexpr const char* name = kOp;
  static constexpr const char* schema =
      "(Tensor logits, Tensor key, SymInt? num_samples=None, SymInt sample_offset=0, "
      "int event_dims=1, Tensor? sample_index=None) -> (Tensor value, Tensor log_prob)";
  static constexpr const char* backward_schema =
      "(Tensor grad, Tensor value, Tensor logits, int event_dims=1) -> Tensor";
  static constexpr std::array<size_t, 1> differentiable{0};
  static constexpr std::array<size_t, 2> kept{0, 4};
  static constexpr std::array<size_t, 1> kept_results{0}, constant_results{0};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList results) {
    return std::tuple(grads[1], results[0], std::get<0>(arguments), std::get<4>(arguments));
  }

  static Outputs forward(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                         SymInt sample_offset, int64_t event_dims,
                         const OptionalTensor& sample_index) {
    const auto sym_shape = check(logits, key, num_samples, sample_offset, event_dims, sample_index);
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    const Tensor l = logits.contiguous(), k = key.contiguous();
    const auto rows = shape.slice(0, shape.size() - 1);
    BernoulliSampleParams p{};
    p.features = shape.back();
    p.rows = c10::multiply_integers(rows);
    const int64_t batch = c10::multiply_integers(rows.slice(1));
    p.logits_rows = std::max<int64_t>(1, num_samples.has_value() ? batch : p.rows);
    const int64_t offset = sample_offset.expect_int();
    const Tensor numbers = sample_numbers(kOp, sample_index, offset, batch);
    p.samples = {numbers_or_null(numbers), offset, batch};
    p.dtype = dtype_of(l);
    p.logits = l.const_data_ptr();
    p.key = k.const_data_ptr<int64_t>();
    p.num_segments = std::max<int64_t>(1, ceil_div(p.features, kSampleSegment));
    const Tensor value = empty_large(shape, l.options());
    p.elementwise = event_dims == 0;
    at::DimVector sizes(rows.begin(), rows.end());
    if (p.elementwise) {
      sizes.push_back(p.features);
    } else if (p.num_segments > 1) {
      sizes.push_back(p.num_segments);
    }
    const Tensor log_prob = empty_large(sizes, l.options().dtype(accumulate_type(l.scalar_type())));
    p.value = value.mutable_data_ptr();
    p.log_prob = log_prob.mutable_data_ptr();
    // Noise costs several times what other work on an element costs.
    launch<bernoulli_sample>(l, p, p.rows * p.num_segments,
                             4 * std::min(p.features, kSampleSegment));
    return {value, p.elementwise || p.num_segments == 1 ? log_prob : log_prob.sum(-1)};
  }

  static Outputs forward_meta(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                              SymInt sample_offset, int64_t event_dims,
                              const OptionalTensor& sample_index) {
    const auto sizes = check(logits, key, num_samples, sample_offset, event_dims, sample_index);
    const c10::SymDimVector rows(sizes.begin(), sizes.end() - event_dims);
    const auto acc = logits.options().dtype(accumulate_type(logits.scalar_type()));
    return {at::empty_symint(sizes, logits.options()), at::empty_symint(rows, acc)};
  }

  // The samples are constants of the density, so its gradient is that of bernoulli_log_prob.
  static Tensor backward(const Tensor& grad, const Tensor& value, const Tensor& logits,
                         int64_t event_dims) {
    const auto shape =
        row_sum_shape<2>({kOp, {"value", "logits"}}, {value, logits}, event_dims, true);
    return row_sum_backward<bernoulli_log_prob_backward, 2>(grad, {value, logits}, shape,
                                                            event_dims, {false, true}, {})[1];
  }
  static Tensor backward_meta(const Tensor&, const Tensor&, const Tensor& logits, int64_t) {
    return at::empty_symint(logits.sym_sizes(), logits.options());
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<BernoulliSample>::define(m); }

}  // namespace fastvi::bernoulli_sample_op
