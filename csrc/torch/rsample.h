// The torch side of engines/rsample.h: what the ops that draw loc + sigma eps have in common.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>

#include <string>
#include <utility>

#include "engines/rsample.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/fixed_sum.h"
#include "torch/launch.h"
#include "torch/shell.h"
#include "torch/spread.h"

namespace fastvi {

// The passes of such an op, which Shell of torch/shell.h calls with each argument of the op's
// schema, behind those of so many gradients. The op has them by name, in a struct of its own:
//   static Outputs draw(const Arguments&), draw_meta(const Arguments&);
//   static Grads differentiate(const std::array<OptionalTensor, given>&, const Arguments&);
//   static Grads differentiate_meta(const Arguments&);
template <class Op, class Given, class... Args>
struct RsampleOp;
template <class Op, size_t... given, class... Args>
struct RsampleOp<Op, std::index_sequence<given...>, Args...> {
  template <size_t>
  using Grad = const std::optional<at::Tensor>&;

  static auto forward(Args... args) { return Op::draw({args...}); }
  static auto forward_meta(Args... args) { return Op::draw_meta({args...}); }
  static auto backward(Grad<given>... grads, Args... args) {
    return Op::differentiate({grads...}, {args...});
  }
  static auto backward_meta(Grad<given>..., Args... args) {
    return Op::differentiate_meta({args...});
  }
};

// The shape [*batch, D]; refuses what no such op takes.
template <class Arguments>
c10::SymDimVector rsample_shape(const char* op, const Arguments& a) {
  TORCH_CHECK_VALUE(a.event_dims == 0 || a.event_dims == 1, op,
                    ": expected event_dims to be 0 or 1, got ", a.event_dims);
  const std::string spread_name(a.kind);
  check_floating(op, "loc", a.loc);
  check_rank(op, "loc", a.loc, 1);
  check_floating(op, spread_name.c_str(), a.spread);
  check_like(op, spread_name.c_str(), a.spread, "loc", a.loc);
  c10::SymDimVector shape(a.loc.sym_sizes().begin(), a.loc.sym_sizes().end());
  TORCH_CHECK_VALUE(broadcast_into(&shape, a.spread.sym_sizes()), op, ": expected ", spread_name,
                    " to broadcast with loc, shape ", a.loc.sym_sizes(), ", got shape ",
                    a.spread.sym_sizes());
  check_key(op, a.key, a.loc);
  check_num_samples(op, a.num_samples);
  TORCH_CHECK_VALUE(a.sample_offset >= 0, op, ": expected sample_offset to be at least 0, got ",
                    a.sample_offset);
  const auto batch = c10::SymIntArrayRef(shape).slice(0, shape.size() - 1);
  check_rows(op, a.num_samples, a.sample_offset, batch);
  if (a.sample_index.has_value()) {
    c10::SymDimVector sizes(batch.begin(), batch.end());
    sizes.insert(sizes.begin(), a.num_samples);
    check_sample_index(op, a.sample_index, sizes, a.loc);
  }
  return shape;
}

inline at::DimVector with_samples(int64_t num_samples, at::IntArrayRef shape) {
  at::DimVector sizes{num_samples};
  sizes.append(shape.begin(), shape.end());
  return sizes;
}

// A call's tensors as the kernels want them. An op that has a prior sets it first.
class RsampleCall {
 public:
  template <class Arguments>
  RsampleCall(const char* op, const Arguments& a, at::IntArrayRef shape)
      : shape_(shape.begin(), shape.end()),
        loc_(as_shape(a.loc, shape)),
        spread_(as_shape(a.spread, shape)),
        key_(a.key.contiguous()),
        acc_(a.loc.options().dtype(accumulate_type(a.loc.scalar_type()))) {
    p.features = shape.back();
    p.batch = c10::multiply_integers(shape.begin(), shape.end() - 1);
    p.num_samples = a.num_samples.expect_int();
    p.sample_offset = a.sample_offset.expect_int();
    numbers_ = sample_numbers(op, a.sample_index, p.sample_offset, p.batch);
    p.sample_index = numbers_or_null(numbers_);
    p.dtype = dtype_of(a.loc);
    p.spread_kind = spread_kind_of(op, a.kind);
    p.elementwise = a.event_dims == 0;
    p.loc = loc_.const_data_ptr();
    p.spread = spread_.const_data_ptr();
    p.key = key_.const_data_ptr<int64_t>();
    p.num_segments = std::max<int64_t>(1, ceil_div(p.features, kRsampleSegment));
  }

  void set_prior(const at::Tensor& prior_loc, const at::Tensor& prior_log_var) {
    // One row of prior for all data stays one row.
    const at::IntArrayRef shape(shape_);
    const bool shared = is_row(prior_loc) && is_row(prior_log_var);
    const at::IntArrayRef prior_shape = shared ? shape.slice(shape.size() - 1) : shape;
    prior_loc_ = as_shape(prior_loc, prior_shape);
    prior_log_var_ = as_shape(prior_log_var, prior_shape);
    p.prior_loc = prior_loc_.const_data_ptr();
    p.prior_log_var = prior_log_var_.const_data_ptr();
    p.prior_stride = shared ? 0 : p.features;
    inverse_prior_scale_ = at::empty(prior_shape, acc_);
    p.inverse_prior_scale = inverse_prior_scale_.mutable_data_ptr();
  }

  // z, and room for log-densities as the kernels write them; row_sums() makes them [K, *batch].
  at::Tensor draws() { return empty_large(with_samples(p.num_samples, shape_), loc_.options()); }
  at::Tensor densities() {
    if (p.elementwise) return empty_large(with_samples(p.num_samples, shape_), acc_);
    auto sizes = with_samples(p.num_samples, at::IntArrayRef(shape_).slice(0, shape_.size() - 1));
    if (p.num_segments > 1) sizes.push_back(p.num_segments);
    return at::empty(sizes, acc_);
  }
  at::Tensor row_sums(const at::Tensor& densities) const {
    if (p.elementwise || p.num_segments == 1) return densities;
    return densities.sum(-1, /*keepdim=*/false, at::kDouble).to(acc_.dtype());
  }
  template <class Prepare, class Kernel>
  void forward() {
    prepare<Prepare>();
    // Noise costs several times what other work on an element costs.
    launch<Kernel>(loc_, p, p.num_samples * p.batch * p.num_segments,
                   4 * std::min(p.features, kRsampleSegment));
  }

  // Fills grad_loc and grad_spread, and the gradients of the prior that the parameters ask for.
  template <class Prepare, class Backward, class Combine>
  void backward(at::Tensor* grad_loc, at::Tensor* grad_spread) {
    const int64_t threads = std::max<int64_t>(1, p.batch * ceil_div(p.features, 4));
    const int64_t wanted = std::max<int64_t>(1, kRsampleThreads / threads);
    const bool on_card = loc_.is_cuda() || kCudaEmulated;
    p.split_size = std::clamp(ceil_div(p.num_samples, wanted),
                              on_card ? kRsampleMinCardSplit : kRsampleMinSplit, kRsampleMaxSplit);
    p.num_splits = ceil_div(p.num_samples, p.split_size);
    *grad_loc = empty_large(shape_, acc_);
    *grad_spread = empty_large(shape_, acc_);
    const at::Tensor partial =
        at::empty({p.num_splits, rsample_outputs(p), p.batch, p.features}, acc_);
    p.partial = partial.mutable_data_ptr();
    p.grad_loc = grad_loc->mutable_data_ptr();
    p.grad_spread = grad_spread->mutable_data_ptr();
    prepare<Prepare>();
    launch<Backward>(loc_, p, p.num_splits * p.batch * p.num_segments,
                     4 * p.split_size * std::min(p.features, kRsampleSegment));
    launch<Combine>(loc_, p, p.batch * p.features, p.num_splits);
  }

  // The gradients that a backward is given; undefined where there is none.
  at::Tensor given_draws(const char* op, const char* name,
                         const std::optional<at::Tensor>& t) const {
    return given(op, name, t, with_samples(p.num_samples, shape_), loc_.scalar_type());
  }
  at::Tensor given_densities(const char* op, const char* name,
                             const std::optional<at::Tensor>& t) const {
    const at::IntArrayRef shape(shape_);
    return given(
        op, name, t,
        with_samples(p.num_samples, p.elementwise ? shape : shape.slice(0, shape.size() - 1)),
        c10::typeMetaToScalarType(acc_.dtype()));
  }

  const at::TensorOptions& acc() const { return acc_; }

  RsampleParams p{};

 private:
  // The launch before that of the op, with nothing between them.
  template <class Kernel>
  void prepare() {
    sigma_ = at::empty(shape_, acc_);
    p.sigma = sigma_.mutable_data_ptr();
    const int64_t constants = p.batch * (p.elementwise ? p.features : p.num_segments);
    constants_ = at::empty({2, constants}, acc_);
    p.log_q_constant = constants_.mutable_data_ptr();
    p.log_p_constant = static_cast<char*>(p.log_q_constant) + constants * constants_.element_size();
    launch<Kernel>(loc_, p, p.batch * p.num_segments, std::min(p.features, kRsampleSegment));
  }

  at::Tensor given(const char* op, const char* name, const std::optional<at::Tensor>& t,
                   at::IntArrayRef sizes, at::ScalarType type) const {
    if (!t.has_value()) return {};
    check_given(op, name, *t, sizes, type, loc_);
    return t->contiguous();
  }
  bool is_row(const at::Tensor& t) const {
    return t.numel() == 1 || t.numel() == t.size(-1) || static_cast<size_t>(t.dim()) <= 1 ||
           shape_.size() == 1;
  }
  static at::Tensor as_shape(const at::Tensor& t, at::IntArrayRef shape) {
    if (t.sizes() == shape) return t.contiguous();
    if (static_cast<size_t>(t.dim()) > shape.size())
      return t.reshape({t.size(-1)}).expand(shape).contiguous();
    return t.expand(shape).contiguous();
  }

  at::DimVector shape_;
  at::Tensor loc_, spread_, key_, numbers_, prior_loc_, prior_log_var_, sigma_,
      inverse_prior_scale_, constants_;
  at::TensorOptions acc_;
};

// A gradient of the shape [*batch, D], as that of what was broadcast to it.
inline at::Tensor rsample_gradient(const at::Tensor& grad, const at::Tensor& like) {
  return fixed_sum_to(grad, like.sizes()).to(like.scalar_type());
}

}  // namespace fastvi
