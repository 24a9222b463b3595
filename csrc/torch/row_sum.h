// The torch side of engines/row_sum.h: from tensors that broadcast to the operands of a kernel.
#pragma once

#include <ATen/ops/empty.h>

#include <array>

#include "engines/row_sum.h"
#include "torch/checks.h"
#include "torch/empty.h"
#include "torch/fixed_sum.h"
#include "torch/gradients.h"
#include "torch/launch.h"

namespace fastvi {

// The names of an op and of its operands, for messages.
template <size_t n>
struct RowSumNames {
  const char* op;
  std::array<const char*, n> operands;
};

// Checks the operands and returns the shape they broadcast to. `value_may_be_float32`: operand 0
// may be float32 where the others are bfloat16 or float16.
template <size_t n>
c10::SymDimVector row_sum_shape(const RowSumNames<n>& names,
                                const std::array<at::Tensor, n>& operands, int64_t event_dims,
                                bool value_may_be_float32) {
  const size_t like = value_may_be_float32 ? 1 : 0;
  c10::SymDimVector shape;
  for (size_t i = 0; i < n; ++i) {
    const auto& t = operands[i];
    check_floating(names.op, names.operands[i], t);
    const bool raised = value_may_be_float32 && i == 0 && t.scalar_type() == at::kFloat &&
                        accumulate_type(operands[like].scalar_type()) == at::kFloat;
    if (i != like && !raised)
      check_like(names.op, names.operands[i], t, names.operands[like], operands[like]);
    if (raised) {
      TORCH_CHECK_VALUE(t.device() == operands[like].device(), names.op, ": expected ",
                        names.operands[i], " to be on the device of ", names.operands[like], ", ",
                        operands[like].device(), ", got ", t.device());
    }
    const auto before = shape;
    TORCH_CHECK_VALUE(broadcast_into(&shape, t.sym_sizes()), names.op, ": expected ",
                      names.operands[i], " to broadcast with the other arguments, shape ", before,
                      ", got shape ", t.sym_sizes());
  }
  TORCH_CHECK_VALUE(event_dims >= 0, names.op, ": expected event_dims to be at least 0, got ",
                    event_dims);
  TORCH_CHECK_VALUE(static_cast<int64_t>(shape.size()) >= event_dims, names.op,
                    ": expected the arguments to have at least event_dims = ", event_dims,
                    " dimension(s), got shape ", shape);
  return shape;
}

inline c10::SymDimVector without_event(const c10::SymDimVector& shape, int64_t event_dims) {
  return {shape.begin(), shape.end() - event_dims};
}

// How the work lies: rows x features, and each operand within it.
template <size_t n>
class RowSumLayout {
 public:
  RowSumLayout(const std::array<at::Tensor, n>& operands, at::IntArrayRef shape, int64_t event_dims)
      : shape_(shape.begin(), shape.end()) {
    int64_t inner = event_dims;
    if (event_dims == 0) {
      // Element by element: as many trailing dimensions in a row as every operand has whole.
      const auto ndim = static_cast<int64_t>(shape.size());
      while (inner < ndim && all_whole_or_single(operands, inner + 1)) ++inner;
    }
    features_ = c10::multiply_integers(shape.end() - inner, shape.end());
    rows_ = c10::multiply_integers(shape.begin(), shape.end() - inner);
    for (size_t i = 0; i < n; ++i) place(i, operands[i], inner);
  }

  // The parameters that forward and backward have in common.
  template <class Params>
  void fill(Params* p, int64_t event_dims) const {
    for (size_t i = 0; i < n; ++i) p->operands[i] = operands_[i];
    p->rows = rows_;
    p->features = features_;
    p->value_dtype = dtype_of(kept_[0]);
    p->dtype = dtype_of(kept_[n > 1 ? 1 : 0]);
    p->elementwise = event_dims == 0;
    p->num_segments = std::max<int64_t>(1, ceil_div(features_, kRowSegment));
  }

  // Where the gradient of an operand may go, for rows that repeat with a period.
  GradPlace place(size_t i, int64_t period) const {
    const Operand& o = operands_[i];
    if (o.row_stride == 0) return GradPlace::shared;
    if (o.period == rows_) return o.stride == 0 ? GradPlace::rows : GradPlace::elements;
    // A period between the others': rare enough to be written out.
    return o.period == period ? GradPlace::data : GradPlace::elements;
  }

  // The same whichever gradients are asked for, and so are their bits.
  RowCut cut() const {
    int64_t period = rows_;
    for (const Operand& o : operands_) {
      if (o.row_stride != 0) period = std::min(period, o.period);
    }
    // Elements of an operand that stay in cache, and of the work that are worth a task of their
    // own. Enough tasks for a large machine; more would only make more partial sums.
    constexpr int64_t kInCache = 16384, kTask = 65536, kMostTasks = 128;
    RowCut cut{};
    cut.period = period;
    cut.repeats = rows_ / period;
    cut.at_once = std::clamp<int64_t>(kInCache / work(), 1, period);
    const int64_t tasks = std::clamp<int64_t>(rows_ * features_ / kTask, 1, kMostTasks);
    const int64_t chunks = ceil_div(tasks, ceil_div(features_, kRowSegment));
    cut.data_chunks = std::min(chunks, ceil_div(period, cut.at_once));
    cut.repeat_chunks = std::min(ceil_div(chunks, cut.data_chunks), cut.repeats);
    return cut;
  }

  // The same on a card, where a thread takes four features of a chunk: enough threads to fill it,
  // and enough rows for each that the sums of the chunks are few beside what is read.
  RowCut cut_for_card() const {
    constexpr int64_t kFeatures = 262144, kRows = 16;
    RowCut cut{};
    cut.period = rows_;
    for (const Operand& o : operands_) {
      if (o.row_stride != 0) cut.period = std::min(cut.period, o.period);
    }
    if (cut.period == rows_) cut.period = 1;  // No datum repeats: all rows are of one.
    cut.repeats = rows_ / cut.period;
    const int64_t chunks = std::clamp<int64_t>(kFeatures / features_, 1, ceil_div(rows_, kRows));
    cut.data_chunks = std::min(chunks, cut.period);
    cut.repeat_chunks = std::min(ceil_div(chunks, cut.data_chunks), cut.repeats);
    return cut;
  }

  // Whether the sums of an operand's gradient are kept in float64. Where a datum has no more rows
  // than a short sum has, nothing meets there, and twice the memory would buy nothing.
  bool total_in_double(size_t i, GradPlace place, const RowCut& cut) const {
    constexpr int64_t kShort = 64;
    if (place == GradPlace::rows) return false;
    return place == GradPlace::shared || operands_[i].stride == 0 || cut.repeats > kShort;
  }

  // The room of the sums of an operand's gradient.
  at::DimVector sums_shape(size_t i, GradPlace place, const RowCut& cut) const {
    const int64_t width = operands_[i].stride == 0 ? ceil_div(features_, kRowSegment) : features_;
    if (place == GradPlace::rows) return {1, rows_, width};
    if (place == GradPlace::data) return {cut.repeat_chunks, cut.period, width};
    return {cut.repeat_chunks * cut.data_chunks, 1, width};
  }

  bool whole(size_t i) const { return whole_[i]; }
  bool uniform(size_t i) const { return operands_[i].stride == 0; }
  int64_t features() const { return features_; }
  int64_t rows() const { return rows_; }
  int64_t work() const { return std::min(features_, kRowSegment); }

 private:
  int64_t size_at(const at::Tensor& t, int64_t from_the_right) const {
    return from_the_right <= t.dim() ? t.size(-from_the_right) : 1;
  }
  int64_t shape_at(int64_t from_the_right) const { return shape_[shape_.size() - from_the_right]; }

  // Whether the trailing `inner` dimensions of an operand are all its own, or all of size one.
  bool whole_event(const at::Tensor& t, int64_t inner) const {
    for (int64_t d = 1; d <= inner; ++d) {
      if (size_at(t, d) != shape_at(d)) return false;
    }
    return true;
  }
  bool single_event(const at::Tensor& t, int64_t inner) const {
    for (int64_t d = 1; d <= inner; ++d) {
      if (size_at(t, d) != 1) return false;
    }
    return true;
  }
  bool all_whole_or_single(const std::array<at::Tensor, n>& operands, int64_t inner) const {
    return std::all_of(operands.begin(), operands.end(), [&](const at::Tensor& t) {
      return whole_event(t, inner) || single_event(t, inner);
    });
  }

  void place(size_t i, const at::Tensor& t, int64_t inner) {
    const auto ndim = static_cast<int64_t>(shape_.size());
    const bool whole = whole_event(t, inner), single = !whole && single_event(t, inner);
    // Leading dimensions that are broadcast, then dimensions that are whole: rows repeat with a
    // period. Any other pattern is copied out.
    int64_t own = inner;
    while (own < ndim && size_at(t, own + 1) == shape_at(own + 1)) ++own;
    bool periodic = whole || single;
    for (int64_t d = own + 1; d <= ndim; ++d) periodic = periodic && size_at(t, d) == 1;
    kept_[i] = (periodic ? t : t.expand(shape_)).contiguous();
    Operand& o = operands_[i];
    o.data = kept_[i].const_data_ptr();
    o.grad = nullptr;
    o.period = periodic ? c10::multiply_integers(shape_.end() - own, shape_.end() - inner) : rows_;
    o.period = std::max<int64_t>(1, o.period);
    o.stride = periodic && single ? 0 : 1;
    o.row_stride = o.period == 1 && rows_ != 1 ? 0 : (o.stride == 0 ? 1 : features_);
    whole_[i] = t.sizes() == at::IntArrayRef(shape_);
  }

  at::DimVector shape_;
  int64_t rows_, features_;
  std::array<at::Tensor, n> kept_;
  std::array<Operand, n> operands_;
  std::array<bool, n> whole_;
};

// log-density or divergence of every row: shape without the event, in the accumulation type.
template <class Kernel, size_t n>
at::Tensor row_sum_forward(const std::array<at::Tensor, n>& operands,
                           const c10::SymDimVector& sym_shape, int64_t event_dims,
                           typename Kernel::Params p) {
  const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
  const RowSumLayout<n> layout(operands, shape, event_dims);
  layout.fill(&p, event_dims);
  const auto options = operands[n > 1 ? 1 : 0].options().dtype(
      accumulate_type(operands[n > 1 ? 1 : 0].scalar_type()));
  at::DimVector out_shape(shape.begin(), shape.end() - event_dims);
  const bool partial = !p.elementwise && p.num_segments > 1;
  if (partial) out_shape.push_back(p.num_segments);
  const at::Tensor out = empty_large(out_shape, options);
  // A row of no features is an empty sum.
  if (p.features == 0 && !p.elementwise) return out.zero_();
  p.out = out.mutable_data_ptr();
  launch<Kernel>(operands[0], p, p.rows * p.num_segments, layout.work());
  return partial ? out.sum(-1, /*keepdim=*/false, at::kDouble).to(options.dtype()) : out;
}

// From the sums of the tasks, [parts, rows, features or segments], to the gradient. They meet in
// float64: there are few of them.
inline at::Tensor gradient_from_sums(at::Tensor sums, const at::Tensor& operand) {
  sums = sums.size(0) == 1 ? sums.select(0, 0) : sums.sum(0, /*keepdim=*/false, at::kDouble);
  if (sums.numel() != operand.numel()) sums = fixed_sum_to(sums.to(at::kDouble), {sums.size(0), 1});
  return sums.reshape(operand.sizes()).to(operand.scalar_type());
}

// The gradient of every operand that is asked for; an empty tensor for the others.
template <class Kernel, size_t n>
std::array<at::Tensor, n> row_sum_backward(const at::Tensor& grad,
                                           const std::array<at::Tensor, n>& operands,
                                           const c10::SymDimVector& sym_shape, int64_t event_dims,
                                           const std::array<bool, n>& needs,
                                           typename Kernel::Params p) {
  const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
  const RowSumLayout<n> layout(operands, shape, event_dims);
  layout.fill(&p, event_dims);
  const at::Tensor& like = operands[n > 1 ? 1 : 0];
  check_given("fastvi", "grad", grad, shape.slice(0, shape.size() - event_dims),
              accumulate_type(like.scalar_type()), like);
  const at::Tensor grad_out = grad.contiguous();
  p.grad_out = grad_out.const_data_ptr();
  // Where a row is one vector or less, every element is written, and summed afterwards: below about
  // this many features what a row costs is more than what it saves.
  constexpr int64_t kShortRow = 24;
  const bool may_sum = layout.rows() > 0 && layout.features() >= kShortRow;
  const bool on_card = !grad.is_cpu() || kCudaEmulated;
  const RowCut cut = !may_sum ? RowCut{} : on_card ? layout.cut_for_card() : layout.cut();
  std::array<at::Tensor, n> grads, recent;
  for (size_t i = 0; i < n; ++i) {
    if (!needs[i]) {
      grads[i] = at::empty({0}, operands[i].options());
      continue;
    }
    // A card sums over rows, and not over the features of one.
    if (cut.period != 0 && !(on_card && layout.uniform(i)))
      p.grad_place[i] = layout.place(i, cut.period);
    if (p.grad_place[i] != GradPlace::elements) {
      const auto sums = layout.sums_shape(i, p.grad_place[i], cut);
      p.total_in_double[i] = on_card || layout.total_in_double(i, p.grad_place[i], cut);
      const auto acc = operands[i].options().dtype(grad.scalar_type());
      grads[i] = empty_large(sums, p.total_in_double[i] ? acc.dtype(at::kDouble) : acc);
      if (!on_card && p.grad_place[i] != GradPlace::rows && !layout.uniform(i)) {
        recent[i] = empty_large(sums, acc);
        p.recent[i] = recent[i].mutable_data_ptr();
      }
      p.cut = cut;
    } else {
      p.grad_in_acc[i] = !layout.whole(i);
      const auto type = p.grad_in_acc[i] ? grad.scalar_type() : operands[i].scalar_type();
      grads[i] = empty_large(shape, operands[i].options().dtype(type));
    }
    p.operands[i].grad = grads[i].mutable_data_ptr();
  }
  if (p.cut.period != 0) {
    const int64_t tasks = p.num_segments * cut.data_chunks * cut.repeat_chunks;
    launch<Kernel>(operands[0], p, tasks, p.rows * p.features / tasks);
  } else if (p.features != 0) {
    launch<Kernel>(operands[0], p, p.rows * p.num_segments, layout.work());
  }
  for (size_t i = 0; i < n; ++i) {
    if (p.grad_place[i] != GradPlace::elements) {
      grads[i] = gradient_from_sums(grads[i], operands[i]);
    } else if (p.grad_in_acc[i]) {
      grads[i] = fixed_sum_to(grads[i], operands[i].sizes()).to(operands[i].scalar_type());
    }
  }
  return grads;
}

template <size_t n>
std::array<at::Tensor, n> row_sum_backward_meta(const std::array<at::Tensor, n>& operands,
                                                const std::array<bool, n>& needs) {
  std::array<at::Tensor, n> grads;
  for (size_t i = 0; i < n; ++i) {
    grads[i] = needs[i] ? at::empty_symint(operands[i].sym_sizes(), operands[i].options())
                        : at::empty({0}, operands[i].options());
  }
  return grads;
}

}  // namespace fastvi
