#include "laplace_rsample/laplace_rsample.h"

#include "common/torch/rsample.h"

namespace fastvi::laplace_rsample_op {
namespace {

using at::Tensor;
using c10::string_view;
using c10::SymInt;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor>;

constexpr const char* kOp = "laplace_rsample";

Outputs call_forward(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                     SymInt num_samples, SymInt sample_offset, int64_t event_dims,
                     const OptionalTensor& sample_index) {
  static auto op = find_op<decltype(call_forward)>("fastvi::laplace_rsample");
  return op.call(loc, spread, kind, key, std::move(num_samples), std::move(sample_offset),
                 event_dims, sample_index);
}
Outputs call_backward(const OptionalTensor& grad_z, const OptionalTensor& grad_log_q,
                      const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                      SymInt num_samples, SymInt sample_offset, int64_t event_dims,
                      const OptionalTensor& sample_index) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_laplace_rsample_backward");
  return op.call(grad_z, grad_log_q, loc, spread, kind, key, std::move(num_samples),
                 std::move(sample_offset), event_dims, sample_index);
}

// The shape [*batch, D]; refuses what the op does not take.
c10::SymDimVector check(const Tensor& loc, const Tensor& spread, string_view kind,
                        const Tensor& key, const SymInt& num_samples, const SymInt& sample_offset,
                        int64_t event_dims, const OptionalTensor& sample_index) {
  TORCH_CHECK_VALUE(kind == "scale" || kind == "log_scale", kOp,
                    ": expected kind to be scale or log_scale, got ", kind);
  return rsample_shape(kOp, loc, spread, kind, key, num_samples, sample_offset, event_dims,
                       sample_index);
}

RsampleCall call_of(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                    const SymInt& num_samples, const SymInt& sample_offset, int64_t event_dims,
                    const OptionalTensor& sample_index, at::IntArrayRef shape) {
  RsampleCall call(kOp, loc, spread, spread_kind_of(kOp, kind), key, num_samples.expect_int(),
                   sample_offset.expect_int(), event_dims, sample_index, shape);
  call.prepare<laplace_rsample_prepare>();
  return call;
}

Outputs forward(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                SymInt num_samples, SymInt sample_offset, int64_t event_dims,
                const OptionalTensor& sample_index) {
  const auto sym_shape =
      check(loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index);
  const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
  RsampleCall call =
      call_of(loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index, shape);
  const Tensor z = call.draws(), log_q = call.densities();
  call.p.z = z.mutable_data_ptr();
  call.p.log_q = log_q.mutable_data_ptr();
  call.forward<laplace_rsample>();
  return {z, call.row_sums(log_q)};
}

Outputs forward_meta(const Tensor& loc, const Tensor& spread, string_view kind, const Tensor& key,
                     SymInt num_samples, SymInt sample_offset, int64_t event_dims,
                     const OptionalTensor& sample_index) {
  auto sizes = check(loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index);
  sizes.insert(sizes.begin(), num_samples);
  const c10::SymDimVector of_log_q(sizes.begin(), sizes.end() - event_dims);
  const auto acc = loc.options().dtype(accumulate_type(loc.scalar_type()));
  return {at::empty_symint(sizes, loc.options()), at::empty_symint(of_log_q, acc)};
}

Outputs backward(const OptionalTensor& grad_z, const OptionalTensor& grad_log_q, const Tensor& loc,
                 const Tensor& spread, string_view kind, const Tensor& key, SymInt num_samples,
                 SymInt sample_offset, int64_t event_dims, const OptionalTensor& sample_index) {
  const auto sym_shape =
      check(loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index);
  const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
  RsampleCall call =
      call_of(loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index, shape);
  const Tensor g_z = call.given_draws(kOp, "grad_z", grad_z),
               g_q = call.given_densities(kOp, "grad_log_q", grad_log_q);
  call.p.grad_z = data_or_null(g_z);
  call.p.grad_log_q = data_or_null(g_q);
  Tensor grad_loc, grad_spread;
  call.backward<laplace_rsample_backward, laplace_rsample_combine>(&grad_loc, &grad_spread);
  return {rsample_gradient(grad_loc, loc), rsample_gradient(grad_spread, spread)};
}

Outputs backward_meta(const OptionalTensor&, const OptionalTensor&, const Tensor& loc,
                      const Tensor& spread, string_view, const Tensor&, SymInt, SymInt, int64_t,
                      const OptionalTensor&) {
  return {at::empty_symint(loc.sym_sizes(), loc.options()),
          at::empty_symint(spread.sym_sizes(), spread.options())};
}

class LaplaceRsample : public torch::autograd::Function<LaplaceRsample> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& loc, const Tensor& spread,
                               const Tensor& key, const std::string& kind,
                               const SymInt& num_samples, const SymInt& sample_offset,
                               int64_t event_dims, const OptionalTensor& sample_index) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({loc, spread, key, or_undefined(sample_index)});
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["num_samples"] = num_samples;
    ctx->saved_data["sample_offset"] = sample_offset;
    ctx->saved_data["event_dims"] = event_dims;
    auto [z, log_q] =
        call_forward(loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index);
    return {z, log_q};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(8);
    if (!grads[0].defined() && !grads[1].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    std::tie(out[0], out[1]) = call_backward(
        or_none(grads[0]), or_none(grads[1]), saved[0], saved[1],
        ctx->saved_data["kind"].toStringRef(), saved[2], ctx->saved_data["num_samples"].toSymInt(),
        ctx->saved_data["sample_offset"].toSymInt(), ctx->saved_data["event_dims"].toInt(),
        or_none(saved[3]));
    return out;
  }
};

Outputs forward_autograd(const Tensor& loc, const Tensor& spread, string_view kind,
                         const Tensor& key, SymInt num_samples, SymInt sample_offset,
                         int64_t event_dims, const OptionalTensor& sample_index) {
  const auto out = LaplaceRsample::apply(loc, spread, key, std::string(kind), num_samples,
                                         sample_offset, event_dims, sample_index);
  return {out[0], out[1]};
}

Outputs backward_autograd(const OptionalTensor& grad_z, const OptionalTensor& grad_log_q,
                          const Tensor& loc, const Tensor& spread, string_view kind,
                          const Tensor& key, SymInt num_samples, SymInt sample_offset,
                          int64_t event_dims, const OptionalTensor& sample_index) {
  const auto out = raise_on_double_backward(
      kOp, {or_undefined(grad_z), or_undefined(grad_log_q), loc, spread}, [&]() -> variable_list {
        auto [a, b] = call_backward(grad_z, grad_log_q, loc, spread, kind, key, num_samples,
                                    sample_offset, event_dims, sample_index);
        return {a, b};
      });
  return {out[0], out[1]};
}

Outputs forward_autocast(const Tensor& loc, const Tensor& spread, string_view kind,
                         const Tensor& key, SymInt num_samples, SymInt sample_offset,
                         int64_t event_dims, const OptionalTensor& sample_index) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  const auto type = widest_type({loc, spread});
  return call_forward(cast_to(loc, type), cast_to(spread, type), kind, key, std::move(num_samples),
                      std::move(sample_offset), event_dims, sample_index);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "laplace_rsample(Tensor loc, Tensor spread, str kind, Tensor key, SymInt num_samples, SymInt "
      "sample_offset=0, int event_dims=1, Tensor? sample_index=None) -> (Tensor z, Tensor log_q)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_laplace_rsample_backward(Tensor? grad_z, Tensor? grad_log_q, Tensor loc, Tensor spread, "
      "str kind, Tensor key, SymInt num_samples, SymInt sample_offset, int event_dims, Tensor? "
      "sample_index=None) -> (Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "laplace_rsample", &forward, &forward_meta, &forward_autograd, &forward_autocast);
  register_backward(m, "_laplace_rsample_backward", &backward, &backward_meta, &backward_autograd);
}

}  // namespace fastvi::laplace_rsample_op
