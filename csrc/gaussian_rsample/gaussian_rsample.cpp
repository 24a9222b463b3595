#include "gaussian_rsample/gaussian_rsample.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>

#include "common/torch/autograd.h"
#include "common/torch/checks.h"
#include "common/torch/empty.h"
#include "common/torch/fixed_sum.h"
#include "common/torch/launch.h"
#include "common/torch/spread.h"

namespace fastvi {
namespace {

using at::Tensor;
using c10::string_view;
using c10::SymInt;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kOp = "gaussian_rsample";

Outputs call_forward(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                     SymInt num_samples, SymInt sample_offset, const OptionalTensor& prior_loc,
                     const OptionalTensor& prior_log_var, string_view gradient) {
  static auto op = find_op<decltype(call_forward)>("fastvi::gaussian_rsample");
  return op.call(loc, spread, kind, key, std::move(num_samples), std::move(sample_offset),
                 prior_loc, prior_log_var, gradient);
}
Grads call_backward(const OptionalTensor& grad_z, const OptionalTensor& grad_log_q,
                    const OptionalTensor& grad_log_p, const OptionalTensor& path_weight,
                    const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                    SymInt num_samples, SymInt sample_offset, const OptionalTensor& prior_loc,
                    const OptionalTensor& prior_log_var, string_view gradient) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_gaussian_rsample_backward");
  return op.call(grad_z, grad_log_q, grad_log_p, path_weight, loc, spread, kind, key,
                 std::move(num_samples), std::move(sample_offset), prior_loc, prior_log_var,
                 gradient);
}

// The shape [*batch, D]; refuses what the op does not take.
c10::SymDimVector check(const Tensor& loc, const Tensor& spread, string_view kind,
                        const Tensor& key, const SymInt& num_samples, const SymInt& sample_offset,
                        const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                        string_view gradient) {
  spread_kind_of(kOp, kind);
  const std::string spread_name(kind);
  check_floating(kOp, "loc", loc);
  check_rank(kOp, "loc", loc, 1);
  check_floating(kOp, spread_name.c_str(), spread);
  check_like(kOp, spread_name.c_str(), spread, "loc", loc);
  c10::SymDimVector shape(loc.sym_sizes().begin(), loc.sym_sizes().end());
  TORCH_CHECK_VALUE(broadcast_into(&shape, spread.sym_sizes()), kOp, ": expected ", spread_name,
                    " to broadcast with loc, shape ", loc.sym_sizes(), ", got shape ",
                    spread.sym_sizes());
  check_key(kOp, key, loc);
  check_num_samples(kOp, num_samples);
  TORCH_CHECK_VALUE(sample_offset >= 0, kOp, ": expected sample_offset to be at least 0, got ",
                    sample_offset);
  check_rows(kOp, num_samples, sample_offset,
             c10::SymIntArrayRef(shape).slice(0, shape.size() - 1));
  TORCH_CHECK_VALUE(prior_loc.has_value() == prior_log_var.has_value(), kOp,
                    ": expected both of prior loc and prior log_var, or neither");
  const auto check_prior = [&](const char* name, const Tensor& t) {
    check_floating(kOp, name, t);
    check_like(kOp, name, t, "loc", loc);
    c10::SymDimVector widened = shape;
    TORCH_CHECK_VALUE(broadcast_into(&widened, t.sym_sizes()) && widened == shape, kOp,
                      ": expected ", name, " to broadcast to ", shape, ", got shape ",
                      t.sym_sizes());
  };
  if (prior_loc.has_value()) {
    check_prior("prior loc", *prior_loc);
    check_prior("prior log_var", *prior_log_var);
  }
  TORCH_CHECK_VALUE(gradient == "total" || gradient == "path" || gradient == "path_weighted", kOp,
                    ": expected gradient to be total, path or path_weighted, got ", gradient);
  return shape;
}

// A call's tensors as the kernels want them, and what `prepare` makes of them.
class Call {
 public:
  Call(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
       int64_t num_samples, int64_t sample_offset, const OptionalTensor& prior_loc,
       const OptionalTensor& prior_log_var, bool path_only, at::IntArrayRef shape)
      : loc_(loc.expand(shape).contiguous()),
        spread_(spread.expand(shape).contiguous()),
        key_(key.contiguous()),
        acc_(loc.options().dtype(accumulate_type(loc.scalar_type()))) {
    p.features = shape.back();
    p.batch = c10::multiply_integers(shape.begin(), shape.end() - 1);
    p.num_samples = num_samples;
    p.sample_offset = sample_offset;
    p.dtype = dtype_of(loc);
    p.spread_kind = spread_kind_of(kOp, kind);
    p.path_only = path_only;
    p.loc = loc_.const_data_ptr();
    p.spread = spread_.const_data_ptr();
    p.key = key_.const_data_ptr<int64_t>();
    p.num_segments = std::max<int64_t>(1, ceil_div(p.features, kRsampleSegment));
    if (prior_loc.has_value()) {
      // One row of prior for all data stays one row.
      const bool shared = is_row(*prior_loc, shape) && is_row(*prior_log_var, shape);
      const at::IntArrayRef prior_shape = shared ? shape.slice(shape.size() - 1) : shape;
      prior_loc_ = as_shape(*prior_loc, prior_shape);
      prior_log_var_ = as_shape(*prior_log_var, prior_shape);
      p.prior_loc = prior_loc_.const_data_ptr();
      p.prior_log_var = prior_log_var_.const_data_ptr();
      p.prior_stride = shared ? 0 : p.features;
      inverse_prior_var_ = at::empty(prior_shape, acc_);
      p.inverse_prior_var = inverse_prior_var_.mutable_data_ptr();
    }
    sigma_ = at::empty(shape, acc_);
    constants_ = at::empty({2, p.batch, p.num_segments}, acc_);
    p.sigma = sigma_.mutable_data_ptr();
    p.log_q_constant = constants_.mutable_data_ptr();
    p.log_p_constant =
        static_cast<char*>(p.log_q_constant) + p.batch * p.num_segments * constants_.element_size();
    launch<gaussian_rsample_prepare>(loc_, p, p.batch * p.num_segments,
                                     std::min(p.features, kRsampleSegment));
  }

  const at::TensorOptions& acc() const { return acc_; }

  GaussianRsampleParams p{};

 private:
  static bool is_row(const Tensor& t, at::IntArrayRef shape) {
    return t.numel() == 1 || t.numel() == t.size(-1) || static_cast<size_t>(t.dim()) <= 1 ||
           shape.size() == 1;
  }
  static Tensor as_shape(const Tensor& t, at::IntArrayRef shape) {
    if (static_cast<size_t>(t.dim()) > shape.size())
      return t.reshape({t.size(-1)}).expand(shape).contiguous();
    return t.expand(shape).contiguous();
  }

  Tensor loc_, spread_, key_, prior_loc_, prior_log_var_, sigma_, inverse_prior_var_, constants_;
  at::TensorOptions acc_;
};

at::DimVector with_samples(int64_t num_samples, at::IntArrayRef shape) {
  at::DimVector sizes{num_samples};
  sizes.append(shape.begin(), shape.end());
  return sizes;
}

Outputs forward(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                SymInt num_samples, SymInt sample_offset, const OptionalTensor& prior_loc,
                const OptionalTensor& prior_log_var, string_view gradient) {
  const auto sym_shape =
      check(loc, spread, kind, key, num_samples, sample_offset, prior_loc, prior_log_var, gradient);
  const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
  const int64_t samples = num_samples.expect_int();
  Call call(loc, spread, kind, key, samples, sample_offset.expect_int(), prior_loc, prior_log_var,
            gradient != "total", shape);
  GaussianRsampleParams& p = call.p;
  const Tensor z = empty_large(with_samples(samples, shape), loc.options());
  auto row_shape = with_samples(samples, shape.slice(0, shape.size() - 1));
  if (p.num_segments > 1) row_shape.push_back(p.num_segments);
  const Tensor log_q = at::empty(row_shape, call.acc()), log_p = at::empty(row_shape, call.acc());
  p.z = z.mutable_data_ptr();
  p.log_q = log_q.mutable_data_ptr();
  p.log_p = log_p.mutable_data_ptr();
  // Noise costs several times what other work on an element costs.
  launch<gaussian_rsample>(loc, p, samples * p.batch * p.num_segments,
                           4 * std::min(p.features, kRsampleSegment));
  if (p.num_segments == 1) return {z, log_q, log_p};
  return {z, log_q.sum(-1), log_p.sum(-1)};
}

Outputs forward_meta(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                     SymInt num_samples, SymInt sample_offset, const OptionalTensor& prior_loc,
                     const OptionalTensor& prior_log_var, string_view gradient) {
  auto sizes =
      check(loc, spread, kind, key, num_samples, sample_offset, prior_loc, prior_log_var, gradient);
  sizes.insert(sizes.begin(), num_samples);
  const c10::SymDimVector rows(sizes.begin(), sizes.end() - 1);
  const auto acc = loc.options().dtype(accumulate_type(loc.scalar_type()));
  return {at::empty_symint(sizes, loc.options()), at::empty_symint(rows, acc),
          at::empty_symint(rows, acc)};
}

// The normalised weights from the gradient that reaches log q. In the bound
// d L[b] / d log_q[k, b] = -w[k, b], so dividing by the sum over k leaves w; a datum that no
// gradient reaches has weight zero, not 0 / 0.
Tensor path_weight_of(const Tensor& grad_log_q) {
  auto sizes = at::DimVector(grad_log_q.sizes());
  sizes[0] = 1;
  const Tensor total = fixed_sum_to(grad_log_q, sizes);
  return at::where(total.eq(0), at::zeros({}, total.options()), grad_log_q / total);
}

Grads backward(const OptionalTensor& grad_z, const OptionalTensor& grad_log_q,
               const OptionalTensor& grad_log_p, const OptionalTensor& path_weight,
               const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
               SymInt num_samples, SymInt sample_offset, const OptionalTensor& prior_loc,
               const OptionalTensor& prior_log_var, string_view gradient) {
  const auto sym_shape =
      check(loc, spread, kind, key, num_samples, sample_offset, prior_loc, prior_log_var, gradient);
  const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
  const int64_t samples = num_samples.expect_int();
  Call call(loc, spread, kind, key, samples, sample_offset.expect_int(), prior_loc, prior_log_var,
            gradient != "total", shape);
  GaussianRsampleParams& p = call.p;

  const auto z_shape = with_samples(samples, shape),
             row_shape = with_samples(samples, shape.slice(0, shape.size() - 1));
  const auto given = [&](const char* name, const OptionalTensor& t, at::IntArrayRef sizes,
                         at::ScalarType type) {
    if (!t.has_value()) return Tensor();
    check_given(kOp, name, *t, sizes, type, loc);
    return t->contiguous();
  };
  const auto acc = accumulate_type(loc.scalar_type());
  const Tensor g_z = given("grad_z", grad_z, z_shape, loc.scalar_type()),
               g_q = given("grad_log_q", grad_log_q, row_shape, acc),
               g_p = given("grad_log_p", grad_log_p, row_shape, acc);
  Tensor weight = given("path_weight", path_weight, row_shape, acc);
  if (gradient == "path_weighted" && !weight.defined()) {
    TORCH_CHECK(g_q.defined(), kOp, ": gradient=path_weighted needs a loss that depends on log_q");
    weight = path_weight_of(g_q);
  }
  p.grad_z = data_or_null(g_z);
  p.grad_log_q = data_or_null(g_q);
  p.grad_log_p = data_or_null(g_p);
  p.path_weight = data_or_null(weight);

  const int64_t threads = std::max<int64_t>(1, p.batch * ceil_div(p.features, 4));
  const int64_t wanted = std::max<int64_t>(1, kRsampleThreads / threads);
  p.split_size = std::clamp(ceil_div(samples, wanted), kRsampleMinSplit, kRsampleMaxSplit);
  p.num_splits = ceil_div(samples, p.split_size);

  const Tensor grad_loc = empty_large(shape, loc.options()),
               grad_spread = empty_large(shape, loc.options());
  Tensor grad_prior_loc = at::empty({0}, loc.options()),
         grad_prior_log_var = at::empty({0}, loc.options());
  if (prior_loc.has_value()) {
    grad_prior_loc = at::empty(shape, call.acc());
    grad_prior_log_var = at::empty(shape, call.acc());
    p.grad_prior_loc = grad_prior_loc.mutable_data_ptr();
    p.grad_prior_log_var = grad_prior_log_var.mutable_data_ptr();
  }
  const Tensor partial =
      at::empty({p.num_splits, rsample_outputs(p), p.batch, p.features}, call.acc());
  p.partial = partial.mutable_data_ptr();
  p.grad_loc = grad_loc.mutable_data_ptr();
  p.grad_spread = grad_spread.mutable_data_ptr();
  launch<gaussian_rsample_backward>(loc, p, p.num_splits * p.batch * p.num_segments,
                                    4 * p.split_size * std::min(p.features, kRsampleSegment));
  launch<gaussian_rsample_combine>(loc, p, p.batch * p.features, p.num_splits);

  const auto reduce = [](const Tensor& grad, const Tensor& like) {
    return fixed_sum_to(grad, like.sizes()).to(like.scalar_type());
  };
  if (prior_loc.has_value()) {
    grad_prior_loc = reduce(grad_prior_loc, *prior_loc);
    grad_prior_log_var = reduce(grad_prior_log_var, *prior_log_var);
  }
  return {reduce(grad_loc, loc), reduce(grad_spread, spread), grad_prior_loc, grad_prior_log_var};
}

Grads backward_meta(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                    const OptionalTensor&, const Tensor& loc, const Tensor& spread, string_view,
                    const Tensor&, SymInt, SymInt, const OptionalTensor& prior_loc,
                    const OptionalTensor& prior_log_var, string_view) {
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  const auto prior_like = [&](const OptionalTensor& t) {
    return t.has_value() ? like(*t) : at::empty({0}, loc.options());
  };
  return {like(loc), like(spread), prior_like(prior_loc), prior_like(prior_log_var)};
}

class GaussianRsample : public torch::autograd::Function<GaussianRsample> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& loc, const Tensor& spread,
                               const Tensor& key, const OptionalTensor& prior_loc,
                               const OptionalTensor& prior_log_var, const std::string& kind,
                               const SymInt& num_samples, const SymInt& sample_offset,
                               const std::string& gradient) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(
        {loc, spread, key, or_undefined(prior_loc), or_undefined(prior_log_var)});
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["num_samples"] = num_samples;
    ctx->saved_data["sample_offset"] = sample_offset;
    ctx->saved_data["gradient"] = gradient;
    auto [z, log_q, log_p] = call_forward(loc, spread, kind, key, num_samples, sample_offset,
                                          prior_loc, prior_log_var, gradient);
    return {z, log_q, log_p};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(9);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    const auto& gradient = ctx->saved_data["gradient"].toStringRef();
    auto [loc, spread, prior_loc, prior_log_var] = call_backward(
        or_none(grads[0]), or_none(grads[1]), or_none(grads[2]), std::nullopt, saved[0], saved[1],
        ctx->saved_data["kind"].toStringRef(), saved[2], ctx->saved_data["num_samples"].toSymInt(),
        ctx->saved_data["sample_offset"].toSymInt(), or_none(saved[3]), or_none(saved[4]),
        gradient);
    out[0] = loc;
    out[1] = spread;
    if (saved[3].defined()) {
      out[3] = prior_loc;
      out[4] = prior_log_var;
    }
    return out;
  }
};

Outputs forward_autograd(const Tensor& loc, const Tensor& spread, string_view kind,
                         const Tensor& key, SymInt num_samples, SymInt sample_offset,
                         const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                         string_view gradient) {
  const auto out =
      GaussianRsample::apply(loc, spread, key, prior_loc, prior_log_var, std::string(kind),
                             num_samples, sample_offset, std::string(gradient));
  return {out[0], out[1], out[2]};
}

Grads backward_autograd(const OptionalTensor& grad_z, const OptionalTensor& grad_log_q,
                        const OptionalTensor& grad_log_p, const OptionalTensor& path_weight,
                        const Tensor& loc, const Tensor& spread, string_view kind,
                        const Tensor& key, SymInt num_samples, SymInt sample_offset,
                        const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                        string_view gradient) {
  const auto out = raise_on_double_backward(
      kOp,
      {or_undefined(grad_z), or_undefined(grad_log_q), or_undefined(grad_log_p),
       or_undefined(path_weight), loc, spread, or_undefined(prior_loc),
       or_undefined(prior_log_var)},
      [&]() -> variable_list {
        auto [a, b, c, d] =
            call_backward(grad_z, grad_log_q, grad_log_p, path_weight, loc, spread, kind, key,
                          num_samples, sample_offset, prior_loc, prior_log_var, gradient);
        return {a, b, c, d};
      });
  return {out[0], out[1], out[2], out[3]};
}

Outputs forward_autocast(const Tensor& loc, const Tensor& spread, string_view kind,
                         const Tensor& key, SymInt num_samples, SymInt sample_offset,
                         const OptionalTensor& prior_loc, const OptionalTensor& prior_log_var,
                         string_view gradient) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  const auto type =
      widest_type({loc, spread, or_undefined(prior_loc), or_undefined(prior_log_var)});
  return call_forward(cast_to(loc, type), cast_to(spread, type), kind, key, std::move(num_samples),
                      std::move(sample_offset), cast_to(prior_loc, type),
                      cast_to(prior_log_var, type), gradient);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "gaussian_rsample(Tensor loc, Tensor spread, str kind, Tensor key, SymInt num_samples, "
      "SymInt sample_offset=0,"
      " Tensor? prior_loc=None, Tensor? prior_log_var=None, str gradient='total')"
      " -> (Tensor z, Tensor log_q, Tensor log_p)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_gaussian_rsample_backward(Tensor? grad_z, Tensor? grad_log_q, Tensor? grad_log_p, Tensor? "
      "path_weight,"
      " Tensor loc, Tensor spread, str kind, Tensor key, SymInt num_samples, SymInt sample_offset, "
      "Tensor? prior_loc,"
      " Tensor? prior_log_var, str gradient) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "gaussian_rsample", &forward, &forward_meta, &forward_autograd, &forward_autocast);
  register_backward(m, "_gaussian_rsample_backward", &backward, &backward_meta, &backward_autograd);
}

}  // namespace fastvi
