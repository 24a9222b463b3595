#include "leave_one_out/leave_one_out.h"

#include <ATen/ops/empty.h>

#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/launch.h"
#include "torch/shell.h"

namespace fastvi::leave_one_out_op {
namespace {

using at::Tensor;
using Outputs = std::tuple<Tensor, Tensor>;

void check(const Tensor& log_w) {
  check_floating("leave_one_out", "log_w", log_w);
  check_rank("leave_one_out", "log_w", log_w, 1);
  TORCH_CHECK_VALUE(log_w.sym_size(0) >= 2,
                    "leave_one_out: expected log_w to have at least two samples, got shape ",
                    log_w.sym_sizes());
}

// (m1, m2, R) of each datum: [3, *batch].
c10::SymDimVector state_shape(const Tensor& log_w) {
  c10::SymDimVector shape(log_w.sym_sizes().begin(), log_w.sym_sizes().end());
  shape[0] = 3;
  return shape;
}

// A call's sizes, and room for what is kept of each split, unless there is but one: then that is
// `whole`, what is kept of the column.
struct Call {
  LeaveOneOutParams p{};
  Tensor log_w, partial;
  int64_t tasks;

  Call(const Tensor& given, const Tensor& whole) : log_w(given.contiguous()) {
    p.log_w = log_w.const_data_ptr();
    p.num_samples = log_w.size(0);
    p.batch = log_w.numel() / p.num_samples;
    p.dtype = dtype_of(log_w);
    const int64_t columns = std::max<int64_t>(1, std::min(kLeaveOneOutColumns, p.batch));
    p.split_size =
        std::max(kLeaveOneOutTile / columns, ceil_div(p.num_samples, kLeaveOneOutMaxSplits));
    p.num_splits = ceil_div(p.num_samples, p.split_size);
    partial = p.num_splits == 1 ? whole : at::empty({3, p.num_splits, p.batch}, whole.options());
    p.partial = partial.mutable_data_ptr();
    tasks = p.num_splits * leave_one_out_tiles(p);
  }

  template <class Kernel>
  void run_tiles() const {
    launch<Kernel>(log_w, p, tasks, log_w.numel() / std::max<int64_t>(1, tasks));
  }
  template <class Kernel>
  void run_combine() const {
    if (p.num_splits > 1) launch<Kernel>(log_w, p, p.batch, p.num_splits);
  }
};

struct LeaveOneOut {
  static constexpr const char* name = "leave_one_out";
  static constexpr const char* schema = "(Tensor log_w) -> (Tensor out, Tensor state)";
  static constexpr const char* backward_schema =
      "(Tensor grad, Tensor log_w, Tensor state) -> Tensor";
  static constexpr std::array<size_t, 1> differentiable{0}, kept{0};
  static constexpr std::array<size_t, 1> kept_results{1}, constant_results{1};
  static auto backward_arguments(const variable_list& grads, const auto& arguments,
                                 at::TensorList results) {
    return std::tuple(grads[0], std::get<0>(arguments), results[0]);
  }

  static Outputs forward(const Tensor& log_w) {
    check(log_w);
    const auto options = log_w.options().dtype(accumulate_type(log_w.scalar_type()));
    const Tensor out = empty_large(log_w.sizes(), options);
    const Tensor state = at::empty(C10_AS_INTARRAYREF_SLOW(state_shape(log_w)), options);
    Call call(log_w, state);
    call.p.state = state.mutable_data_ptr();
    call.p.out = out.mutable_data_ptr();
    call.run_tiles<leave_one_out_reduce>();
    call.run_combine<leave_one_out_combine>();
    call.run_tiles<leave_one_out_write>();
    return {out, state};
  }

  static Tensor backward(const Tensor& grad, const Tensor& log_w, const Tensor& state) {
    check(log_w);
    const auto type = accumulate_type(log_w.scalar_type());
    check_given("leave_one_out", "grad", grad, log_w.sizes(), type, log_w);
    check_given("leave_one_out", "state", state, C10_AS_INTARRAYREF_SLOW(state_shape(log_w)), type,
                log_w);
    const Tensor grad_log_w = empty_large(log_w.sizes(), log_w.options());
    const Tensor grad_c = grad.contiguous(), state_c = state.contiguous();
    const Tensor signals = at::empty(state_c.sizes(), state_c.options());
    Call call(log_w, signals);
    call.p.state = state_c.data_ptr();
    call.p.grad = grad_c.const_data_ptr();
    call.p.signals = signals.mutable_data_ptr();
    call.p.grad_log_w = grad_log_w.mutable_data_ptr();
    call.run_tiles<leave_one_out_backward_reduce>();
    call.run_combine<leave_one_out_backward_combine>();
    call.run_tiles<leave_one_out_backward_write>();
    return grad_log_w;
  }

  static Outputs forward_meta(const Tensor& log_w) {
    check(log_w);
    const auto options = log_w.options().dtype(accumulate_type(log_w.scalar_type()));
    return {at::empty_symint(log_w.sym_sizes(), options),
            at::empty_symint(state_shape(log_w), options)};
  }

  static Tensor backward_meta(const Tensor&, const Tensor& log_w, const Tensor&) {
    return at::empty_symint(log_w.sym_sizes(), log_w.options());
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastvi, m) { Shell<LeaveOneOut>::define(m); }

}  // namespace fastvi::leave_one_out_op
