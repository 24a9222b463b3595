#include "gaussian_log_prob/gaussian_log_prob.h"

#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/reciprocal.h>

#include "torch/row_sum.h"
#include "torch/spread.h"

namespace fastvi::gaussian_log_prob_op {
namespace {

using at::Tensor;
using Grads = std::tuple<Tensor, Tensor, Tensor>;

Tensor call_forward(const Tensor& value, const Tensor& loc, const Tensor& spread,
                    c10::string_view kind, int64_t event_dims) {
  static auto op = find_op<decltype(call_forward)>("fastvi::gaussian_log_prob");
  return op.call(value, loc, spread, kind, event_dims);
}
Grads call_backward(const Tensor& grad, const Tensor& value, const Tensor& loc,
                    const Tensor& spread, c10::string_view kind, int64_t event_dims,
                    std::array<bool, 3> needs) {
  static auto op = find_op<decltype(call_backward)>("fastvi::_gaussian_log_prob_backward");
  return op.call(grad, value, loc, spread, kind, event_dims, needs);
}

auto shape_of(const Tensor& value, const Tensor& loc, const Tensor& spread, c10::string_view kind,
              int64_t event_dims) {
  spread_kind_of("gaussian_log_prob", kind);
  const std::string name(kind);
  const RowSumNames<3> names{"gaussian_log_prob", {"value", "loc", name.c_str()}};
  return row_sum_shape<3>(names, {value, loc, spread}, event_dims, true);
}
GaussianLogProbParams params_of(c10::string_view kind) {
  GaussianLogProbParams p{};
  p.spread_kind = spread_kind_of("gaussian_log_prob", kind);
  return p;
}

// Whether the spread is worth preparing, see PreparedGaussianFamily: each of its numbers serves
// several elements.
bool serves_many(const Tensor& loc, const Tensor& spread, const c10::SymDimVector& shape) {
  constexpr int64_t kMany = 8;
  return loc.is_cpu() && !kCudaEmulated &&
         accumulate_type(loc.scalar_type()) == loc.scalar_type() &&
         c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(shape)) >= kMany * spread.numel();
}

// Whether each of them is so far from the ends of its type that its square is within.
bool all_moderate(const Tensor& inverse) {
  const auto within = [&](auto one) {
    using S = decltype(one);
    constexpr S low = sizeof(S) == 4 ? S(0x1p-60f) : S(0x1p-500), high = 1 / low;
    const S* x = inverse.const_data_ptr<S>();
    bool all = true;
    for (int64_t i = 0; i < inverse.numel(); ++i) all &= (x[i] >= low) & (x[i] <= high);
    return all;
  };
  return inverse.scalar_type() == at::kDouble ? within(double{}) : within(float{});
}

// Value, location, 1 / sigma and log sigma.
std::array<Tensor, 4> prepare(const Tensor& value, const Tensor& loc, const Tensor& spread,
                              SpreadKind kind) {
  if (kind == SpreadKind::scale) return {value, loc, spread.reciprocal(), spread.log()};
  const Tensor log_sigma = kind == SpreadKind::log_var ? spread * 0.5 : spread;
  return {value, loc, log_sigma.neg().exp_(), log_sigma};
}

Tensor forward(const Tensor& value, const Tensor& loc, const Tensor& spread, c10::string_view kind,
               int64_t event_dims) {
  const auto shape = shape_of(value, loc, spread, kind, event_dims);
  auto params = params_of(kind);
  params.prepared = serves_many(loc, spread, shape);
  if (params.prepared) {
    const auto operands = prepare(value, loc, spread, params.spread_kind);
    params.prepared = all_moderate(operands[2]);
    if (params.prepared)
      return row_sum_forward<gaussian_log_prob, 4>(operands, shape, event_dims, params);
  }
  return row_sum_forward<gaussian_log_prob, 3>({value, loc, spread}, shape, event_dims, params);
}
Tensor forward_meta(const Tensor& value, const Tensor& loc, const Tensor& spread,
                    c10::string_view kind, int64_t event_dims) {
  return at::empty_symint(without_event(shape_of(value, loc, spread, kind, event_dims), event_dims),
                          loc.options().dtype(accumulate_type(loc.scalar_type())));
}

Grads backward(const Tensor& grad, const Tensor& value, const Tensor& loc, const Tensor& spread,
               c10::string_view kind, int64_t event_dims, std::array<bool, 3> needs) {
  const auto shape = shape_of(value, loc, spread, kind, event_dims);
  auto params = params_of(kind);
  params.prepared = serves_many(loc, spread, shape);
  if (params.prepared) {
    const auto operands = prepare(value, loc, spread, params.spread_kind);
    params.prepared = all_moderate(operands[2]);
    if (params.prepared) {
      const auto grads = row_sum_backward<gaussian_log_prob_backward, 4>(
          grad, operands, shape, event_dims, {needs[0], needs[1], needs[2], false}, params);
      return {grads[0], grads[1], grads[2]};
    }
  }
  const auto grads = row_sum_backward<gaussian_log_prob_backward, 3>(
      grad, {value, loc, spread}, shape, event_dims, needs, params);
  return {grads[0], grads[1], grads[2]};
}
Grads backward_meta(const Tensor&, const Tensor& value, const Tensor& loc, const Tensor& spread,
                    c10::string_view, int64_t, std::array<bool, 3> needs) {
  const auto grads = row_sum_backward_meta<3>({value, loc, spread}, needs);
  return {grads[0], grads[1], grads[2]};
}

class GaussianLogProb : public torch::autograd::Function<GaussianLogProb> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& value, const Tensor& loc,
                        const Tensor& spread, const std::string& kind, int64_t event_dims) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({value, loc, spread});
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["event_dims"] = event_dims;
    return call_forward(value, loc, spread, kind, event_dims);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::array<bool, 3> needs{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                    ctx->needs_input_grad(2)};
    const auto [value, loc, spread] =
        call_backward(grads[0], saved[0], saved[1], saved[2], ctx->saved_data["kind"].toStringRef(),
                      ctx->saved_data["event_dims"].toInt(), needs);
    return {needs[0] ? value : Tensor(), needs[1] ? loc : Tensor(), needs[2] ? spread : Tensor(),
            Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& value, const Tensor& loc, const Tensor& spread,
                        c10::string_view kind, int64_t event_dims) {
  return GaussianLogProb::apply(value, loc, spread, std::string(kind), event_dims);
}
Grads backward_autograd(const Tensor& grad, const Tensor& value, const Tensor& loc,
                        const Tensor& spread, c10::string_view kind, int64_t event_dims,
                        std::array<bool, 3> needs) {
  const auto out = raise_on_double_backward(
      "gaussian_log_prob", {grad, value, loc, spread}, [&]() -> variable_list {
        auto [g_value, g_loc, g_spread] =
            call_backward(grad, value, loc, spread, kind, event_dims, needs);
        return {g_value, g_loc, g_spread};
      });
  return {out[0], out[1], out[2]};
}

Tensor forward_autocast(const Tensor& value, const Tensor& loc, const Tensor& spread,
                        c10::string_view kind, int64_t event_dims) {
  c10::impl::ExcludeDispatchKeyGuard guard(autocast_keys());
  const auto type = widest_type({loc, spread});
  return call_forward(cast_value(value, type), cast_to(loc, type), cast_to(spread, type), kind,
                      event_dims);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) {
  m.def(
      "gaussian_log_prob(Tensor value, Tensor loc, Tensor spread, str kind, int event_dims=1) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_gaussian_log_prob_backward(Tensor grad, Tensor value, Tensor loc, Tensor spread, str kind, "
      "int event_dims,"
      " bool[3] needs) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  register_op(m, "gaussian_log_prob", &forward, &forward_meta, &forward_autograd,
              &forward_autocast);
  register_backward(m, "_gaussian_log_prob_backward", &backward, &backward_meta,
                    &backward_autograd);
}

}  // namespace fastvi::gaussian_log_prob_op
