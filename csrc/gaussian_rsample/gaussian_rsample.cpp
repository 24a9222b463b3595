#include "gaussian_rsample/gaussian_rsample.h"

#include <ATen/ops/where.h>

#include "torch/rsample.h"

namespace fastvi::gaussian_rsample_op {
namespace {

using at::Tensor;
using c10::string_view;
using c10::SymInt;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kOp = "gaussian_rsample";

struct Arguments {
  const Tensor &loc, &spread;
  string_view kind;
  const Tensor& key;
  SymInt num_samples, sample_offset;
  const OptionalTensor &prior_loc, &prior_log_var;
  string_view gradient;
  int64_t event_dims;
  const OptionalTensor& sample_index;
};

// The shape [*batch, D]; refuses what the op does not take.
c10::SymDimVector check(const Arguments& a) {
  spread_kind_of(kOp, a.kind);
  const auto shape = rsample_shape(kOp, a);
  TORCH_CHECK_VALUE(a.prior_loc.has_value() == a.prior_log_var.has_value(), kOp,
                    ": expected both of prior loc and prior log_var, or neither");
  const auto check_prior = [&](const char* name, const Tensor& t) {
    check_floating(kOp, name, t);
    check_like(kOp, name, t, "loc", a.loc);
    c10::SymDimVector widened = shape;
    TORCH_CHECK_VALUE(broadcast_into(&widened, t.sym_sizes()) && widened == shape, kOp,
                      ": expected ", name, " to broadcast to ", shape, ", got shape ",
                      t.sym_sizes());
  };
  if (a.prior_loc.has_value()) {
    check_prior("prior loc", *a.prior_loc);
    check_prior("prior log_var", *a.prior_log_var);
  }
  TORCH_CHECK_VALUE(a.gradient == "total" || a.gradient == "path" || a.gradient == "path_weighted",
                    kOp, ": expected gradient to be total, path or path_weighted, got ",
                    a.gradient);
  TORCH_CHECK_VALUE(a.event_dims == 1 || (!a.prior_loc.has_value() && a.gradient == "total"), kOp,
                    ": expected no prior and gradient to be total where event_dims is 0");
  return shape;
}

RsampleCall call_of(const Arguments& a, at::IntArrayRef shape) {
  RsampleCall call(kOp, a, shape);
  call.p.path_only = a.gradient != "total";
  if (a.prior_loc.has_value()) call.set_prior(*a.prior_loc, *a.prior_log_var);
  return call;
}

struct GaussianRsample
    : RsampleOp<GaussianRsample, std::make_index_sequence<4>, const Tensor&, const Tensor&,
                string_view, const Tensor&, SymInt, SymInt, const OptionalTensor&,
                const OptionalTensor&, string_view, int64_t, const OptionalTensor&> {
  using Given = std::array<OptionalTensor, 4>;  // of z, log q, log p; the path weight
  static constexpr const char* name = kOp;
  static constexpr const char* schema =
      "(Tensor loc, Tensor spread, str kind, Tensor key, SymInt num_samples, "
      "SymInt sample_offset=0, Tensor? prior_loc=None, Tensor? prior_log_var=None, "
      "str gradient='total', int event_dims=1, Tensor? sample_index=None) -> (Tensor z, "
      "Tensor log_q, Tensor log_p)";
  static constexpr const char* backward_schema =
      "(Tensor? grad_z, Tensor? grad_log_q, Tensor? grad_log_p, Tensor? path_weight, Tensor loc, "
      "Tensor spread, str kind, Tensor key, SymInt num_samples, SymInt sample_offset, "
      "Tensor? prior_loc, Tensor? prior_log_var, str gradient, int event_dims=1, "
      "Tensor? sample_index=None) -> (Tensor, Tensor, Tensor, Tensor)";
  static constexpr std::array<size_t, 4> differentiable{0, 1, 6, 7};
  static constexpr std::array<size_t, 11> kept{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  static constexpr std::array<size_t, 0> kept_results{}, constant_results{};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList) {
    return std::tuple_cat(
        std::tuple(or_none(grads[0]), or_none(grads[1]), or_none(grads[2]), OptionalTensor()),
        arguments);
  }

  static Outputs draw(const Arguments& a) {
    const auto sym_shape = check(a);
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    RsampleCall call = call_of(a, shape);
    const Tensor z = call.draws(), log_q = call.densities();
    const Tensor log_p = a.event_dims == 0 ? at::empty({0}, call.acc()) : call.densities();
    call.p.z = z.mutable_data_ptr();
    call.p.log_q = log_q.mutable_data_ptr();
    call.p.log_p = log_p.mutable_data_ptr();
    call.forward<gaussian_rsample_prepare, gaussian_rsample>();
    return {z, call.row_sums(log_q), a.event_dims == 0 ? log_p : call.row_sums(log_p)};
  }

  static Outputs draw_meta(const Arguments& a) {
    auto sizes = check(a);
    sizes.insert(sizes.begin(), a.num_samples);
    const auto options = a.loc.options(), acc = options.dtype(accumulate_type(a.loc.scalar_type()));
    if (a.event_dims == 0) {
      return {at::empty_symint(sizes, options), at::empty_symint(sizes, acc), at::empty({0}, acc)};
    }
    const c10::SymDimVector rows(sizes.begin(), sizes.end() - 1);
    return {at::empty_symint(sizes, options), at::empty_symint(rows, acc),
            at::empty_symint(rows, acc)};
  }

  // The normalised weights from the gradient that reaches log q. In the bound
  // d L[b] / d log_q[k, b] = -w[k, b], so dividing by the sum over k leaves w; a datum that no
  // gradient reaches has weight zero, not 0 / 0.
  static Tensor path_weight_of(const Tensor& grad_log_q) {
    auto sizes = at::DimVector(grad_log_q.sizes());
    sizes[0] = 1;
    const Tensor total = fixed_sum_to(grad_log_q, sizes);
    return at::where(total.eq(0), at::zeros({}, total.options()), grad_log_q / total);
  }

  static Grads differentiate(const Given& given, const Arguments& a) {
    const auto sym_shape = check(a);
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    RsampleCall call = call_of(a, shape);
    RsampleParams& p = call.p;

    const auto& [grad_z, grad_log_q, grad_log_p, path_weight] = given;
    const Tensor g_z = call.given_draws(kOp, "grad_z", grad_z),
                 g_q = call.given_densities(kOp, "grad_log_q", grad_log_q);
    Tensor g_p;
    if (a.event_dims == 1) {
      g_p = call.given_densities(kOp, "grad_log_p", grad_log_p);
    } else if (grad_log_p.has_value()) {
      // The gradient of an empty log p.
      check_given(kOp, "grad_log_p", *grad_log_p, {0}, accumulate_type(a.loc.scalar_type()), a.loc);
    }
    Tensor weight = call.given_densities(kOp, "path_weight", path_weight);
    if (a.gradient == "path_weighted" && !weight.defined()) {
      TORCH_CHECK(g_q.defined(), kOp,
                  ": gradient=path_weighted needs a loss that depends on log_q");
      weight = path_weight_of(g_q);
    }
    p.grad_z = data_or_null(g_z);
    p.grad_log_q = data_or_null(g_q);
    p.grad_log_p = data_or_null(g_p);
    p.path_weight = data_or_null(weight);

    const bool has_prior = a.prior_loc.has_value();
    Tensor grad_prior_loc = at::empty({0}, a.loc.options()),
           grad_prior_log_var = at::empty({0}, a.loc.options());
    if (has_prior) {
      grad_prior_loc = at::empty(shape, call.acc());
      grad_prior_log_var = at::empty(shape, call.acc());
      p.grad_prior_loc = grad_prior_loc.mutable_data_ptr();
      p.grad_prior_log_var = grad_prior_log_var.mutable_data_ptr();
    }
    Tensor grad_loc, grad_spread;
    call.backward<gaussian_rsample_prepare, gaussian_rsample_backward, gaussian_rsample_combine>(
        &grad_loc, &grad_spread);
    if (has_prior) {
      grad_prior_loc = rsample_gradient(grad_prior_loc, *a.prior_loc);
      grad_prior_log_var = rsample_gradient(grad_prior_log_var, *a.prior_log_var);
    }
    return {rsample_gradient(grad_loc, a.loc), rsample_gradient(grad_spread, a.spread),
            grad_prior_loc, grad_prior_log_var};
  }

  static Grads differentiate_meta(const Arguments& a) {
    const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
    const auto prior_like = [&](const OptionalTensor& t) {
      return t.has_value() ? like(*t) : at::empty({0}, a.loc.options());
    };
    return {like(a.loc), like(a.spread), prior_like(a.prior_loc), prior_like(a.prior_log_var)};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<GaussianRsample>::define(m); }

}  // namespace fastvi::gaussian_rsample_op
