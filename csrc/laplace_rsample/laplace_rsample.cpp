#include "laplace_rsample/laplace_rsample.h"

#include "torch/rsample.h"

namespace fastvi::laplace_rsample_op {
namespace {

using at::Tensor;
using c10::string_view;
using c10::SymInt;
using OptionalTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor>;
using Grads = std::tuple<Tensor, Tensor>;

constexpr const char* kOp = "laplace_rsample";

struct Arguments {
  const Tensor &loc, &spread;
  string_view kind;
  const Tensor& key;
  SymInt num_samples, sample_offset;
  int64_t event_dims;
  const OptionalTensor& sample_index;
};

// The shape [*batch, D]; refuses what the op does not take.
c10::SymDimVector check(const Arguments& a) {
  TORCH_CHECK_VALUE(a.kind == "scale" || a.kind == "log_scale", kOp,
                    ": expected kind to be scale or log_scale, got ", a.kind);
  return rsample_shape(kOp, a);
}

struct LaplaceRsample
    : RsampleOp<LaplaceRsample, std::make_index_sequence<2>, const Tensor&, const Tensor&,
                string_view, const Tensor&, SymInt, SymInt, int64_t, const OptionalTensor&> {
  using Given = std::array<OptionalTensor, 2>;  // of z and log q
  static constexpr const char* name = kOp;
  static constexpr const char* schema =
      "(Tensor loc, Tensor spread, str kind, Tensor key, SymInt num_samples, "
      "SymInt sample_offset=0, int event_dims=1, Tensor? sample_index=None) -> (Tensor z, "
      "Tensor log_q)";
  static constexpr const char* backward_schema =
      "(Tensor? grad_z, Tensor? grad_log_q, Tensor loc, Tensor spread, str kind, Tensor key, "
      "SymInt num_samples, SymInt sample_offset, int event_dims, Tensor? sample_index=None) -> "
      "(Tensor, Tensor)";
  static constexpr std::array<size_t, 2> differentiable{0, 1};
  static constexpr std::array<size_t, 8> kept{0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr std::array<size_t, 0> kept_results{}, constant_results{};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList) {
    return std::tuple_cat(std::tuple(or_none(grads[0]), or_none(grads[1])), arguments);
  }

  static Outputs draw(const Arguments& a) {
    const auto sym_shape = check(a);
    RsampleCall call(kOp, a, C10_AS_INTARRAYREF_SLOW(sym_shape));
    const Tensor z = call.draws(), log_q = call.densities();
    call.p.z = z.mutable_data_ptr();
    call.p.log_q = log_q.mutable_data_ptr();
    call.forward<laplace_rsample_prepare, laplace_rsample>();
    return {z, call.row_sums(log_q)};
  }

  static Outputs draw_meta(const Arguments& a) {
    auto sizes = check(a);
    sizes.insert(sizes.begin(), a.num_samples);
    const c10::SymDimVector of_log_q(sizes.begin(), sizes.end() - a.event_dims);
    const auto acc = a.loc.options().dtype(accumulate_type(a.loc.scalar_type()));
    return {at::empty_symint(sizes, a.loc.options()), at::empty_symint(of_log_q, acc)};
  }

  static Grads differentiate(const Given& given, const Arguments& a) {
    const auto sym_shape = check(a);
    RsampleCall call(kOp, a, C10_AS_INTARRAYREF_SLOW(sym_shape));
    const auto& [grad_z, grad_log_q] = given;
    const Tensor g_z = call.given_draws(kOp, "grad_z", grad_z),
                 g_q = call.given_densities(kOp, "grad_log_q", grad_log_q);
    call.p.grad_z = data_or_null(g_z);
    call.p.grad_log_q = data_or_null(g_q);
    Tensor grad_loc, grad_spread;
    call.backward<laplace_rsample_prepare, laplace_rsample_backward, laplace_rsample_combine>(
        &grad_loc, &grad_spread);
    return {rsample_gradient(grad_loc, a.loc), rsample_gradient(grad_spread, a.spread)};
  }

  static Grads differentiate_meta(const Arguments& a) {
    return {at::empty_symint(a.loc.sym_sizes(), a.loc.options()),
            at::empty_symint(a.spread.sym_sizes(), a.spread.options())};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<LaplaceRsample>::define(m); }

}  // namespace fastvi::laplace_rsample_op
