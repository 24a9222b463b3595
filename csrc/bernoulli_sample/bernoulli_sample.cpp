#include "bernoulli_sample/bernoulli_sample.h"

#include <ATen/ops/empty.h>

#include "common/torch/autograd.h"
#include "common/torch/checks.h"
#include "common/torch/empty.h"
#include "common/torch/launch.h"
#include "common/torch/row_sum.h"

namespace fastvi::bernoulli_sample_op {
namespace {

using at::Tensor;
using c10::SymInt;
using Outputs = std::tuple<Tensor, Tensor>;
using OptionalSymInt = std::optional<SymInt>;
using OptionalTensor = std::optional<Tensor>;

constexpr const char* kOp = "bernoulli_sample";

Outputs call_forward(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                     SymInt sample_offset, int64_t event_dims, const OptionalTensor& sample_index) {
  static auto op = find_op<decltype(call_forward)>("fastvi::bernoulli_sample");
  return op.call(logits, key, std::move(num_samples), std::move(sample_offset), event_dims,
                 sample_index);
}
Tensor call_backward(const Tensor& grad, const Tensor& value, const Tensor& logits,
                     int64_t event_dims) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_bernoulli_sample_backward");
  return op.call(grad, value, logits, event_dims);
}

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

Outputs forward(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                SymInt sample_offset, int64_t event_dims, const OptionalTensor& sample_index) {
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
  launch<bernoulli_sample>(l, p, p.rows * p.num_segments, 4 * std::min(p.features, kSampleSegment));
  return {value, p.elementwise || p.num_segments == 1 ? log_prob : log_prob.sum(-1)};
}

Outputs forward_meta(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                     SymInt sample_offset, int64_t event_dims, const OptionalTensor& sample_index) {
  const auto sizes = check(logits, key, num_samples, sample_offset, event_dims, sample_index);
  const c10::SymDimVector rows(sizes.begin(), sizes.end() - event_dims);
  const auto acc = logits.options().dtype(accumulate_type(logits.scalar_type()));
  return {at::empty_symint(sizes, logits.options()), at::empty_symint(rows, acc)};
}

// The samples are constants of the density, so its gradient is that of bernoulli_log_prob.
Tensor backward(const Tensor& grad, const Tensor& value, const Tensor& logits, int64_t event_dims) {
  const auto shape =
      row_sum_shape<2>({kOp, {"value", "logits"}}, {value, logits}, event_dims, true);
  return row_sum_backward<bernoulli_log_prob_backward, 2>(grad, {value, logits}, shape, event_dims,
                                                          {false, true}, {})[1];
}
Tensor backward_meta(const Tensor&, const Tensor&, const Tensor& logits, int64_t) {
  return at::empty_symint(logits.sym_sizes(), logits.options());
}

class BernoulliSample : public torch::autograd::Function<BernoulliSample> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& key,
                               const OptionalSymInt& num_samples, const SymInt& sample_offset,
                               int64_t event_dims, const OptionalTensor& sample_index) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [value, log_prob] =
        call_forward(logits, key, num_samples, sample_offset, event_dims, sample_index);
    ctx->saved_data["event_dims"] = event_dims;
    ctx->mark_non_differentiable({value});
    ctx->save_for_backward({value, logits});
    return {value, log_prob};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const int64_t event_dims = ctx->saved_data["event_dims"].toInt();
    return {call_backward(grads[1], saved[0], saved[1], event_dims),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

Outputs forward_autograd(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                         SymInt sample_offset, int64_t event_dims,
                         const OptionalTensor& sample_index) {
  const auto out =
      BernoulliSample::apply(logits, key, num_samples, sample_offset, event_dims, sample_index);
  return {out[0], out[1]};
}

Tensor backward_autograd(const Tensor& grad, const Tensor& value, const Tensor& logits,
                         int64_t event_dims) {
  return raise_on_double_backward(kOp, {grad, value, logits}, [&]() -> variable_list {
    return {call_backward(grad, value, logits, event_dims)};
  })[0];
}

Outputs forward_autocast(const Tensor& logits, const Tensor& key, OptionalSymInt num_samples,
                         SymInt sample_offset, int64_t event_dims,
                         const OptionalTensor& sample_index) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  return call_forward(logits, key, std::move(num_samples), std::move(sample_offset), event_dims,
                      sample_index);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "bernoulli_sample(Tensor logits, Tensor key, SymInt? num_samples=None, SymInt "
      "sample_offset=0, int event_dims=1, Tensor? sample_index=None) -> (Tensor value, Tensor "
      "log_prob)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_bernoulli_sample_backward(Tensor grad, Tensor value, Tensor logits, int event_dims=1) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "bernoulli_sample", &forward, &forward_meta, &forward_autograd, &forward_autocast);
  register_backward(m, "_bernoulli_sample_backward", &backward, &backward_meta, &backward_autograd);
}

}  // namespace fastvi::bernoulli_sample_op
