#include "categorical_log_prob/categorical_log_prob.h"

#include <ATen/ops/empty.h>

#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/fixed_sum.h"
#include "torch/launch.h"
#include "torch/shell.h"

namespace fastvi::categorical_log_prob_op {
namespace {

using at::Tensor;

constexpr const char* kOp = "categorical_log_prob";

// Checks the arguments and returns the shape of the result.
c10::SymDimVector shape_of(const Tensor& value, const Tensor& logits) {
  check_floating(kOp, "logits", logits);
  check_rank(kOp, "logits", logits, 1);
  TORCH_CHECK_TYPE(c10::isIntegralType(value.scalar_type(), /*includeBool=*/false), kOp,
                   ": expected value to be an integer tensor, got ", value.scalar_type());
  TORCH_CHECK_VALUE(value.device() == logits.device(), kOp,
                    ": expected value to be on the device of logits, ", logits.device(), ", got ",
                    value.device());
  TORCH_CHECK_VALUE(logits.sym_size(-1) >= 1, kOp,
                    ": expected logits to have at least one class, got shape ", logits.sym_sizes());
  c10::SymDimVector shape;
  const auto batch = logits.sym_sizes().slice(0, logits.dim() - 1);
  TORCH_CHECK_VALUE(broadcast_into(&shape, batch) && broadcast_into(&shape, value.sym_sizes()), kOp,
                    ": expected value to broadcast with logits without its classes, shape ", batch,
                    ", got shape ", value.sym_sizes());
  return shape;
}

// Of a batch that is `sizes` broadcast to `shape`: after how many rows it repeats, or zero where
// it does not, because something other than leading dimensions is broadcast.
int64_t period_of(at::IntArrayRef sizes, at::IntArrayRef shape) {
  int64_t period = 1;
  size_t own = 0;
  while (own < sizes.size() && sizes[sizes.size() - 1 - own] == shape[shape.size() - 1 - own]) {
    period *= sizes[sizes.size() - 1 - own++];
  }
  for (size_t d = own; d < sizes.size(); ++d) {
    if (sizes[sizes.size() - 1 - d] != 1) return 0;
  }
  return std::max<int64_t>(1, period);
}

struct Work {
  Tensor value, logits;
  CategoricalLogProbParams params{};

  Work(const Tensor& v, const Tensor& l, at::IntArrayRef shape) {
    auto& p = params;
    auto with_classes = shape.vec();
    with_classes.push_back(l.size(-1));
    p.rows = c10::multiply_integers(shape);
    p.classes = l.size(-1);
    p.value_period = period_of(v.sizes(), shape);
    p.logits_period = period_of(l.sizes().slice(0, l.dim() - 1), shape);
    value = (p.value_period > 0 ? v : v.expand(shape)).to(at::kLong).contiguous();
    logits = (p.logits_period > 0 ? l : l.expand(with_classes)).contiguous();
    if (p.value_period == 0) p.value_period = p.rows;
    if (p.logits_period == 0) p.logits_period = p.rows;
    p.value = value.const_data_ptr<int64_t>();
    p.logits = logits.const_data_ptr();
    p.dtype = dtype_of(l);
  }
};

struct CategoricalLogProb {
  static constexpr const char* name = kOp;
  static constexpr const char* schema = "(Tensor value, Tensor logits) -> Tensor";
  static constexpr const char* backward_schema =
      "(Tensor grad, Tensor value, Tensor logits) -> Tensor";
  static constexpr std::array<size_t, 1> differentiable{1};
  static constexpr std::array<size_t, 2> kept{0, 1};
  static constexpr std::array<size_t, 0> kept_results{}, constant_results{};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList) {
    return std::tuple_cat(std::tie(grads[0]), tied(arguments));
  }

  static Tensor forward(const Tensor& value, const Tensor& logits) {
    const auto sym_shape = shape_of(value, logits);
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    Work work(value, logits, shape);
    const Tensor out =
        at::empty(shape, logits.options().dtype(accumulate_type(logits.scalar_type())));
    work.params.out = out.mutable_data_ptr();
    launch<categorical_log_prob>(logits, work.params, work.params.rows, work.params.classes);
    return out;
  }
  static Tensor forward_meta(const Tensor& value, const Tensor& logits) {
    return at::empty_symint(shape_of(value, logits),
                            logits.options().dtype(accumulate_type(logits.scalar_type())));
  }

  static Tensor backward(const Tensor& grad, const Tensor& value, const Tensor& logits) {
    const auto sym_shape = shape_of(value, logits);
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    check_given(kOp, "grad", grad, shape, accumulate_type(logits.scalar_type()), logits);
    Work work(value, logits, shape);
    at::DimVector full(shape.begin(), shape.end());
    full.push_back(logits.size(-1));
    const bool whole = logits.sizes() == at::IntArrayRef(full);
    const Tensor grad_out = grad.contiguous();
    const Tensor out = empty_large(
        full, logits.options().dtype(whole ? logits.scalar_type() : grad.scalar_type()));
    work.params.grad_out = grad_out.const_data_ptr();
    work.params.grad_logits = out.mutable_data_ptr();
    work.params.grad_in_acc = !whole;
    launch<categorical_log_prob_backward>(logits, work.params, work.params.rows,
                                          work.params.classes);
    return whole ? out : fixed_sum_to(out, logits.sizes()).to(logits.scalar_type());
  }
  static Tensor backward_meta(const Tensor&, const Tensor&, const Tensor& logits) {
    return at::empty_symint(logits.sym_sizes(), logits.options());
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<CategoricalLogProb>::define(m); }

}  // namespace fastvi::categorical_log_prob_op
