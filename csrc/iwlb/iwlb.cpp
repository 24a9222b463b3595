#include "iwlb/iwlb.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/fixed_sum.h"
#include "torch/launch.h"
#include "torch/shell.h"

namespace fastvi {
struct IwlbNode;
}

namespace fastvi::iwlb_op {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor>;

constexpr const char* kOp = "iwlb";

// The shape of the bound; refuses what the op does not take.
c10::SymDimVector check(const Tensor& log_w, const OptionalTensor& log_pz,
                        const OptionalTensor& log_qz, bool samples_last, double alpha) {
  check_floating(kOp, "log_w", log_w);
  check_rank(kOp, "log_w", log_w, 1);
  TORCH_CHECK_VALUE(log_pz.has_value() == log_qz.has_value(), kOp,
                    ": expected either log_w alone or all of log_px, log_pz and log_qz");
  const auto same = [&](const char* name, const Tensor& t) {
    check_like(kOp, name, t, "log_px", log_w);
    TORCH_CHECK_VALUE(t.sym_sizes().equals(log_w.sym_sizes()), kOp, ": expected ", name,
                      " to have the shape of log_px, ", log_w.sym_sizes(), ", got ", t.sym_sizes());
  };
  if (log_pz.has_value()) {
    same("log_pz", *log_pz);
    same("log_qz", *log_qz);
  }
  TORCH_CHECK_VALUE(std::isfinite(alpha), kOp, ": expected alpha to be finite, got ", alpha);
  const auto sizes = log_w.sym_sizes();
  const int64_t dim = samples_last ? log_w.dim() - 1 : 0;
  TORCH_CHECK_VALUE(sizes[dim] >= 1, kOp,
                    ": expected log_w to have at least one sample, got shape ", sizes);
  c10::SymDimVector batch(sizes.begin(), sizes.end());
  batch.erase(batch.begin() + dim);
  return batch;
}

// (shift, total) of each datum: [2, *batch].
c10::SymDimVector state_shape(c10::SymDimVector batch) {
  batch.insert(batch.begin(), 2);
  return batch;
}
void take_state(const Tensor& state, IwlbParams* p) {
  p->shift = state.data_ptr();
  p->total = static_cast<char*>(p->shift) + p->batch * state.element_size();
}

// Terms as the kernels want them: [K, *batch] or [*batch, K], without gaps.
struct Terms {
  Tensor log_px, log_pz, log_qz;
  Terms(const Tensor& x, const OptionalTensor& z, const OptionalTensor& q)
      : log_px(x.contiguous()),
        log_pz(z.has_value() ? z->contiguous() : Tensor()),
        log_qz(q.has_value() ? q->contiguous() : Tensor()) {}
};

IwlbParams make_params(const Terms& terms, bool samples_last, double alpha) {
  IwlbParams p{};
  p.log_px = terms.log_px.const_data_ptr();
  p.log_pz = data_or_null(terms.log_pz);
  p.log_qz = data_or_null(terms.log_qz);
  p.num_samples = terms.log_px.size(samples_last ? -1 : 0);
  p.batch = terms.log_px.numel() / p.num_samples;
  p.stride_k = samples_last ? 1 : p.batch;
  p.stride_b = samples_last ? p.num_samples : 1;
  p.dtype = dtype_of(terms.log_px);
  p.alpha = alpha;
  if (terms.log_px.is_cuda() || kCudaEmulated) {
    iwlb_split_for_card(16 / terms.log_px.element_size(), &p);
    return p;
  }
  const int64_t columns = std::max<int64_t>(1, std::min(iwlb_columns(p), p.batch));
  p.split_size = std::max(kIwlbTile / columns, ceil_div(p.num_samples, kIwlbMaxSplits));
  p.num_splits = ceil_div(p.num_samples, p.split_size);
  return p;
}

// Near alpha = 1 every power w^c is close to 1, and the logarithm of their mean has lost what tells
// them apart: there the mean of w^c - 1 is taken, relative to the largest power. Few ask for such
// an alpha, so by torch's own passes, over some samples at a time.
Tensor refined(const Tensor& bound, const Terms& terms, const Tensor& state, bool samples_last,
               double c) {
  constexpr double kNear = 0.125;
  constexpr int64_t kAtOnce = 1 << 22;
  if (c == 0.0 || std::abs(c) > kNear || bound.numel() == 0) return bound;
  const int64_t dim = samples_last ? -1 : 0, samples = terms.log_px.size(dim);
  const Tensor origin = state[0].to(at::kDouble).div(c).unsqueeze(dim);
  const int64_t step = std::max<int64_t>(1, kAtOnce / bound.numel());
  Tensor below = at::zeros_like(origin);
  for (int64_t k = 0; k < samples; k += step) {
    const auto part = [&](const Tensor& t) {
      return t.narrow(dim, k, std::min(step, samples - k)).to(at::kDouble);
    };
    Tensor x = part(terms.log_px);
    if (terms.log_pz.defined()) x = x + part(terms.log_pz) - part(terms.log_qz);
    below += fixed_sum_to(x.sub(origin).mul_(c).expm1_(), origin.sizes());
  }
  below.div_(samples);
  // Far from 1 the sum of the powers keeps its digits.
  return at::where(below.gt(-0.5), origin + below.log1p().div_(c),
                   bound.unsqueeze(dim).to(at::kDouble))
      .squeeze(dim)
      .to(bound.scalar_type());
}

struct Iwlb {
  using Node = IwlbNode;
  static constexpr const char* name = kOp;
  static constexpr const char* schema =
      "(Tensor log_w, Tensor? log_pz=None, Tensor? log_qz=None, bool samples_last=False, "
      "float alpha=0.0) -> (Tensor bound, Tensor state)";
  static constexpr const char* backward_schema =
      "(Tensor grad, Tensor log_w, Tensor? log_pz, Tensor? log_qz, Tensor state, "
      "bool samples_last, float alpha) -> Tensor";
  static constexpr std::array<size_t, 3> differentiable{0, 1, 2};
  static constexpr std::array<size_t, 5> kept{0, 1, 2, 3, 4};
  static constexpr std::array<size_t, 1> kept_results{1}, constant_results{1};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList results) {
    const auto& [log_w, log_pz, log_qz, samples_last, alpha] = arguments;
    return std::tie(grads[0], log_w, log_pz, log_qz, results[0], samples_last, alpha);
  }
  static variable_list gradients(const Tensor& grad, const std::array<bool, 3>& needs) {
    return {grad, grad, needs[2] ? grad.neg() : Tensor()};
  }

  static Outputs forward(const Tensor& log_w, const OptionalTensor& log_pz,
                         const OptionalTensor& log_qz, bool samples_last, double alpha) {
    const auto sym_batch = check(log_w, log_pz, log_qz, samples_last, alpha);
    const auto batch = C10_AS_INTARRAYREF_SLOW(sym_batch);
    const Terms terms(log_w, log_pz, log_qz);
    const auto options = log_w.options().dtype(accumulate_type(log_w.scalar_type()));
    const auto sym_state = state_shape(sym_batch);
    const Tensor bound = at::empty(batch, options),
                 state = at::empty(C10_AS_INTARRAYREF_SLOW(sym_state), options);
    IwlbParams p = make_params(terms, samples_last, alpha);
    p.bound = bound.mutable_data_ptr();
    take_state(state, &p);
    Tensor partial;
    if (p.num_splits == 1) {
      // One split's pair is the pair.
      p.partial_max = p.shift;
      p.partial_sum = p.total;
    } else {
      partial = at::empty({2, iwlb_partial_rows(p), p.batch}, options);
      p.partial_max = partial.mutable_data_ptr();
      p.partial_sum = static_cast<char*>(p.partial_max) +
                      iwlb_partial_rows(p) * p.batch * partial.element_size();
    }
    const int64_t tiles = iwlb_column_tiles(p);
    launch<iwlb_partial>(log_w, p, p.num_splits * tiles,
                         log_w.numel() / std::max<int64_t>(1, p.num_splits * tiles));
    launch<iwlb_combine>(log_w, p, p.batch, p.num_splits);
    return {refined(bound, terms, state, samples_last, 1.0 - alpha), state};
  }

  static Tensor backward(const Tensor& grad, const Tensor& log_w, const OptionalTensor& log_pz,
                         const OptionalTensor& log_qz, const Tensor& state, bool samples_last,
                         double alpha) {
    const auto sym_batch = check(log_w, log_pz, log_qz, samples_last, alpha);
    const auto batch = C10_AS_INTARRAYREF_SLOW(sym_batch);
    const auto type = accumulate_type(log_w.scalar_type());
    check_given(kOp, "grad", grad, batch, type, log_w);
    const auto sym_state = state_shape(sym_batch);
    check_given(kOp, "state", state, C10_AS_INTARRAYREF_SLOW(sym_state), type, log_w);
    const Terms terms(log_w, log_pz, log_qz);
    const Tensor grad_log_w = empty_large(log_w.sizes(), log_w.options());
    const Tensor grad_c = grad.contiguous(), state_c = state.contiguous();
    IwlbParams p = make_params(terms, samples_last, alpha);
    take_state(state_c, &p);
    p.grad_bound = grad_c.const_data_ptr();
    p.grad_log_w = grad_log_w.mutable_data_ptr();
    const int64_t tiles = iwlb_column_tiles(p);
    launch<iwlb_backward>(log_w, p, p.num_splits * tiles,
                          log_w.numel() / std::max<int64_t>(1, p.num_splits * tiles));
    return grad_log_w;
  }

  static Outputs forward_meta(const Tensor& log_w, const OptionalTensor& log_pz,
                              const OptionalTensor& log_qz, bool samples_last, double alpha) {
    const auto batch = check(log_w, log_pz, log_qz, samples_last, alpha);
    const auto options = log_w.options().dtype(accumulate_type(log_w.scalar_type()));
    return {at::empty_symint(batch, options), at::empty_symint(state_shape(batch), options)};
  }

  static Tensor backward_meta(const Tensor&, const Tensor& log_w, const OptionalTensor&,
                              const OptionalTensor&, const Tensor&, bool, double) {
    return at::empty_symint(log_w.sym_sizes(), log_w.options());
  }
};

}  // namespace

}  // namespace fastvi::iwlb_op

// Torch reads its name in each backward pass, which with few log-weights is a part of the time.
struct fastvi::IwlbNode : fastvi::NodeBase<fastvi::IwlbNode> {
  using Op = fastvi::iwlb_op::Iwlb;
};

TORCH_LIBRARY_FRAGMENT(fastvi, m) { fastvi::Shell<fastvi::iwlb_op::Iwlb>::define(m); }
