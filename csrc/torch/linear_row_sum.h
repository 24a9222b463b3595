// A Linear whose outputs meet a family of engines/row_sum.h: sum_f f(value, (h W^T + b)_f, ...).
// The outputs [K, B, F] never exist as a whole, forward or backward. Blocks of rows go through one
// buffer: torch multiplies, the family's kernel sums or differentiates what is still in cache, and
// the derivative takes the place of the outputs before the next product reads it. Forward on a CPU
// each thread has blocks and a buffer of its own, where there are enough of them.
#pragma once

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "torch/products.h"
#include "torch/row_blocks.h"
#include "torch/row_sum.h"

namespace fastvi {

// The operands of the family, and the Linear whose outputs are operand 1: its own place is empty.
// The others broadcast to [*batch, F]; they do not depend on the sample.
template <size_t n>
struct LinearOperands {
  at::Tensor hidden, weight, bias;  // [K, *batch, H], [F, H], [F] or undefined
  std::array<at::Tensor, n> others;
};

// Checks the operands and returns the shape of the density, [K, *batch].
template <size_t n>
c10::SymDimVector linear_row_sum_shape(const RowSumNames<n>& names, const LinearOperands<n>& in) {
  const char* op = names.op;
  check_floating(op, "hidden", in.hidden);
  check_rank(op, "hidden", in.hidden, 2);
  const auto like_hidden = [&](const char* name, const at::Tensor& t) {
    check_floating(op, name, t);
    check_like(op, name, t, "hidden", in.hidden);
  };
  like_hidden("weight", in.weight);
  TORCH_CHECK_VALUE(in.weight.dim() == 2 && in.weight.sym_size(1) == in.hidden.sym_size(-1), op,
                    ": expected weight to have shape [F, ", in.hidden.sym_size(-1),
                    "], for hidden of shape ", in.hidden.sym_sizes(), ", got shape ",
                    in.weight.sym_sizes());
  const auto features = in.weight.sym_size(0);
  if (in.bias.defined()) {
    like_hidden("bias", in.bias);
    TORCH_CHECK_VALUE(in.bias.dim() == 1 && in.bias.sym_size(0) == features, op,
                      ": expected bias to have shape [", features, "], got shape ",
                      in.bias.sym_sizes());
  }
  const auto sizes = in.hidden.sym_sizes();
  c10::SymDimVector event(sizes.begin() + 1, sizes.end() - 1);
  event.push_back(features);
  for (size_t i = 0; i < n; ++i) {
    if (i == 1) continue;
    const auto& t = in.others[i];
    check_floating(op, names.operands[i], t);
    const bool raised = i == 0 && t.scalar_type() == at::kFloat &&
                        accumulate_type(in.hidden.scalar_type()) == at::kFloat;
    if (!raised) like_hidden(names.operands[i], t);
    TORCH_CHECK_VALUE(t.device() == in.hidden.device(), op, ": expected ", names.operands[i],
                      " to be on the device of hidden, ", in.hidden.device(), ", got ", t.device());
    const size_t dims = t.dim();
    bool fits = dims <= event.size();
    for (size_t d = 0; fits && d < dims; ++d) {
      const auto size = t.sym_size(d);
      fits = size == event[event.size() - dims + d] || size == 1;
    }
    TORCH_CHECK_VALUE(fits, op, ": expected ", names.operands[i],
                      " to broadcast to (*batch, F), shape ", event, ", got shape ", t.sym_sizes());
  }
  return {sizes.begin(), sizes.end() - 1};
}

// The bytes of a block of outputs that all threads work on. On a CPU they should stay in the second
// or third level of the cache from the product to the kernel, and still be enough rows (668 of 784
// float32 features) for the product to run at its full speed. A GPU wants all multiprocessors busy
// in both, and launches few enough to hide what they cost.
inline int64_t linear_block_bytes(const at::Tensor& where) {
  constexpr int64_t kCpu = int64_t{2} << 20, kCuda = int64_t{64} << 20;
  return where.is_cuda() ? kCuda : kCpu;
}

// Samples k .. k + samples of data b .. b + data: rows that lie together.
struct LinearBlock {
  int64_t k, samples, b, data;
  int64_t first;  // row
  int64_t rows() const { return samples * data; }
};

template <size_t n>
class LinearRowSum {
 public:
  LinearRowSum(const LinearOperands<n>& in, bool may_be_by_threads)
      : samples_(in.hidden.size(0)),
        data_(c10::multiply_integers(in.hidden.sizes().slice(1, in.hidden.dim() - 2))),
        features_(in.weight.size(0)),
        hidden_(in.hidden.reshape({samples_ * data_, in.hidden.size(-1)}).contiguous()),
        weight_(in.weight.contiguous()),
        bias_(in.bias.defined() ? in.bias.contiguous() : in.bias),
        event_(in.hidden.sizes().slice(1).vec()) {
    event_.back() = features_;
    for (size_t i = 0; i < n; ++i) {
      if (i != 1) others_[i] = as_rows(in.others[i]);
    }
    const int64_t row_bytes = std::max<int64_t>(1, features_) * hidden_.element_size();
    const int64_t most = may_be_by_threads && hidden_.is_cpu() ? rows_in_cache(row_bytes) : 0;
    if (most != 0) {
      const int64_t threads = at::get_num_threads();
      cut(most, 1);
      if (num_blocks() > 1 && num_blocks() >= threads) {
        cut(most, threads);
        by_threads_ = keep_threads_busy(num_blocks());
      }
    }
    if (!by_threads_) cut(std::max<int64_t>(1, linear_block_bytes(hidden_) / row_bytes), 1);
    by_onednn_ = takes_onednn(Product::forward);
  }

  int64_t rows() const { return samples_ * data_; }
  int64_t features() const { return features_; }
  // Whether a product of the blocks is oneDNN's. Which is faster is measured by all threads.
  bool takes_onednn(Product product) const {
    return rows() != 0 && features_ != 0 && hidden_.size(1) != 0 &&
           products_by_onednn(product, hidden_, weight_, by_threads_ ? rows() : block_rows());
  }
  int64_t block_rows() const { return at_once_[0] * at_once_[1]; }

  // use(block, operands): the operands are [samples, data, F] or what broadcasts to it.
  template <class Use>
  void for_each(Use use) const {
    const at::Tensor room = buffers();
    for_each_block(num_blocks(), by_threads_, [&](int64_t number, int64_t thread) {
      const LinearBlock block = this->block(number);
      use(block, operands(block, room, thread));
    });
  }

  at::Tensor hidden(const LinearBlock& block) const {
    return hidden_.narrow(0, block.first, block.rows());
  }

  c10::SymDimVector shape(const LinearBlock& block) const {
    return {block.samples, block.data, features_};
  }

  // d W, for the derivative d [rows, F] of a block, into `out`, [rows, H].
  void hidden_gradient(const at::Tensor& d, at::Tensor out, bool by_onednn) const {
    if (by_onednn) {
      out.copy_(onednn_linear(d, weight_.t(), at::Tensor()));
    } else {
      at::mm_out(out, d, weight_);
    }
  }

  // From the gradient of an operand at [B, F] to that of the tensor it came from.
  at::Tensor gradient_of(const at::Tensor& t, const at::Tensor& grad) const {
    return fixed_sum_to(grad.reshape(event_), t.sizes()).to(t.scalar_type());
  }
  // The sums of blocks meet in float64.
  at::Tensor zeros_of_event(const at::Tensor& like) const {
    return at::zeros({data_, features_}, like.options().dtype(at::kDouble));
  }

 private:
  // Cuts the rows in blocks of at most so many: a multiple of `alike` blocks, where there are as
  // many samples.
  void cut(int64_t most, int64_t alike) {
    const int64_t samples = std::max<int64_t>(1, most / std::max<int64_t>(1, data_));
    const int64_t blocks = ceil_div(ceil_div(samples_, samples), alike) * alike;
    at_once_ = {std::max<int64_t>(1, ceil_div(samples_, std::max<int64_t>(1, blocks))),
                evenly(data_, most)};
  }
  int64_t num_blocks() const {
    if (rows() == 0 || features_ == 0) return 0;
    return ceil_div(samples_, at_once_[0]) * ceil_div(data_, at_once_[1]);
  }
  LinearBlock block(int64_t number) const {
    const int64_t across = ceil_div(data_, at_once_[1]);
    const int64_t k = number / across * at_once_[0], b = number % across * at_once_[1];
    return {k, std::min(at_once_[0], samples_ - k), b, std::min(at_once_[1], data_ - b),
            k * data_ + b};
  }
  // Room for the outputs of a block, of each thread.
  at::Tensor buffers() const {
    if (by_onednn_) return {};
    const int64_t threads = by_threads_ ? at::get_num_threads() : 1;
    return empty_large({threads, block_rows(), features_}, hidden_.options());
  }
  // The operands of a block, [samples, data, F] or what broadcasts to it.
  std::array<at::Tensor, n> operands(const LinearBlock& block, const at::Tensor& buffers,
                                     int64_t thread) const {
    const at::Tensor outputs = outputs_of(block, buffers, thread);
    std::array<at::Tensor, n> operands;
    for (size_t i = 0; i < n; ++i) {
      operands[i] =
          i == 1 ? outputs.view({block.samples, block.data, features_}) : part(others_[i], block);
    }
    return operands;
  }
  // The Linear's outputs for a block: oneDNN makes new ones, the others fill the thread's buffer.
  at::Tensor outputs_of(const LinearBlock& block, const at::Tensor& buffers, int64_t thread) const {
    if (by_onednn_) return onednn_linear(hidden(block), weight_, bias_);
    at::Tensor outputs = buffers.select(0, thread).narrow(0, 0, block.rows());
    if (bias_.defined()) {
      at::addmm_out(outputs, bias_, hidden(block), weight_.t());
    } else {
      at::mm_out(outputs, hidden(block), weight_.t());
    }
    return outputs;
  }

  static int64_t evenly(int64_t total, int64_t most) {
    return total <= most ? total : ceil_div(total, ceil_div(total, most));
  }

  // [B or 1, F or 1].
  at::Tensor as_rows(const at::Tensor& t) const {
    const int64_t last = t.dim() == 0 ? 1 : t.size(-1);
    if (t.numel() == last) return t.reshape({1, last});
    auto shape = event_;
    shape.back() = last;
    return t.expand(shape).reshape({data_, last}).contiguous();
  }
  static at::Tensor part(const at::Tensor& t, const LinearBlock& block) {
    return t.size(0) == 1 ? t : t.narrow(0, block.b, block.data);
  }

  int64_t samples_, data_, features_;
  at::Tensor hidden_, weight_, bias_;
  bool by_threads_ = false, by_onednn_ = false;
  std::vector<int64_t> event_;
  std::array<at::Tensor, n> others_;
  std::array<int64_t, 2> at_once_;
};

template <class Kernel, size_t n>
at::Tensor linear_row_sum_forward(const LinearOperands<n>& in,
                                  const typename Kernel::Params& params) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_keys());
  const LinearRowSum<n> work(in, /*may_be_by_threads=*/true);
  const auto acc = in.hidden.options().dtype(accumulate_type(in.hidden.scalar_type()));
  const at::Tensor out = at::zeros({work.rows()}, acc);
  work.for_each([&](const LinearBlock& block, const std::array<at::Tensor, n>& operands) {
    const auto sums = row_sum_forward<Kernel, n>(operands, work.shape(block), 1, params);
    out.narrow(0, block.first, block.rows()).copy_(sums.view({block.rows()}));
  });
  return out.view(in.hidden.sizes().slice(0, in.hidden.dim() - 1));
}

// Adds up the gradient of the weight, [F, H], in the accumulation type.
class WeightGradient {
 public:
  WeightGradient(const at::Tensor& weight, const at::TensorOptions& acc, bool by_onednn)
      : transposed_(by_onednn),
        sum_(at::zeros({weight.size(transposed_ ? 1 : 0), weight.size(transposed_ ? 0 : 1)}, acc)) {
  }

  // += d^T h, for d [rows, F] and h [rows, H]. oneDNN's first operand is the one that must be
  // copied to lie in order, so there it is h^T d, whose copy is the smaller. A CPU has no product
  // of bfloat16 into float32: the products of blocks are rounded, their sum is not. In float32 it
  // would take four times as long.
  void add(const at::Tensor& d, const at::Tensor& hidden) {
    if (transposed_) {
      sum_.add_(onednn_linear(hidden.t(), d.t(), at::Tensor()));
    } else if (d.scalar_type() == sum_.scalar_type()) {
      sum_.addmm_(d.t(), hidden);
    } else if (d.is_cuda()) {
      sum_.add_(at::mm(d.t(), hidden, sum_.scalar_type()));
    } else {
      sum_.add_(at::mm(d.t(), hidden));
    }
  }
  at::Tensor sum() const { return transposed_ ? sum_.t().contiguous() : sum_; }

 private:
  bool transposed_;
  at::Tensor sum_;
};

template <size_t n>
struct LinearGrads {
  at::Tensor hidden, weight, bias;
  std::array<at::Tensor, n> others;
};

// The gradient of every tensor that is asked for; an empty one for the others. `needs` counts
// hidden, weight, bias, then the operands without the Linear's outputs.
template <class Kernel, size_t n>
LinearGrads<n> linear_row_sum_backward(const at::Tensor& grad, const LinearOperands<n>& in,
                                       const std::array<bool, n + 2>& needs,
                                       const typename Kernel::Params& params) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(autocast_keys());
  const LinearRowSum<n> work(in, /*may_be_by_threads=*/false);
  const auto options = in.hidden.options();
  const auto acc_type = accumulate_type(in.hidden.scalar_type());
  const auto acc = options.dtype(acc_type);
  const at::Tensor none = at::empty({0}, options);
  const auto needs_other = [&](size_t i) { return i != 1 && needs[i == 0 ? 3 : i + 2]; };

  const at::Tensor grad_rows = grad.reshape({work.rows()}).contiguous();
  at::Tensor grad_hidden = none, grad_bias = none;
  if (needs[0]) {
    grad_hidden = at::empty({work.rows(), in.hidden.size(-1)}, options);
    if (work.features() == 0) grad_hidden.zero_();
  }
  std::optional<WeightGradient> grad_weight;
  if (needs[1]) {
    grad_weight.emplace(in.weight, acc, work.takes_onednn(Product::grad_weight));
  }
  const bool hidden_by_onednn = needs[0] && work.takes_onednn(Product::grad_input);
  if (needs[2]) grad_bias = at::zeros({work.features()}, acc.dtype(at::kDouble));
  std::array<at::Tensor, n> grad_others, scratch;
  for (size_t i = 0; i < n; ++i) {
    if (!needs_other(i)) continue;
    grad_others[i] = work.zeros_of_event(in.others[i]);
    scratch[i] = at::empty({work.block_rows(), work.features()}, acc);
  }
  work.for_each([&](const LinearBlock& block, const std::array<at::Tensor, n>& operands) {
    const auto sym_shape = work.shape(block);  // the next is a view of it
    const auto shape = C10_AS_INTARRAYREF_SLOW(sym_shape);
    const RowSumLayout<n> layout(operands, shape, 1);
    auto p = params;
    layout.fill(&p, 1);
    const at::Tensor grad_out = grad_rows.narrow(0, block.first, block.rows());
    p.grad_out = grad_out.const_data_ptr();
    // In place of the outputs: a thread reads an element before it writes it, and no other does.
    const at::Tensor d = operands[1].view({block.rows(), work.features()});
    if (needs[0] || needs[1] || needs[2]) p.operands[1].grad = d.mutable_data_ptr();
    for (size_t i = 0; i < n; ++i) {
      if (!needs_other(i)) continue;
      p.grad_in_acc[i] = true;
      p.operands[i].grad = scratch[i].mutable_data_ptr();
    }
    launch<Kernel>(d, p, p.rows * p.num_segments, layout.work());
    if (needs[0])
      work.hidden_gradient(d, grad_hidden.narrow(0, block.first, block.rows()), hidden_by_onednn);
    if (needs[1]) grad_weight->add(d, work.hidden(block));
    if (needs[2]) grad_bias.add_(fixed_sum_to(d.to(acc_type), grad_bias.sizes()));
    for (size_t i = 0; i < n; ++i) {
      if (!needs_other(i)) continue;
      at::Tensor sum = grad_others[i].narrow(0, block.b, block.data);
      sum.add_(fixed_sum_to(scratch[i].narrow(0, 0, block.rows()).view(shape), sum.sizes()));
    }
  });

  LinearGrads<n> grads{needs[0] ? grad_hidden.view(in.hidden.sizes()) : none,
                       needs[1] ? grad_weight->sum().to(in.weight.scalar_type()) : none,
                       needs[2] ? grad_bias.to(in.bias.scalar_type()) : none,
                       {}};
  for (size_t i = 0; i < n; ++i) {
    if (i == 1) continue;
    grads.others[i] = needs_other(i) ? work.gradient_of(in.others[i], grad_others[i])
                                     : at::empty({0}, in.others[i].options());
  }
  return grads;
}

template <size_t n>
LinearGrads<n> linear_row_sum_backward_meta(const LinearOperands<n>& in,
                                            const std::array<bool, n + 2>& needs) {
  const auto like = [&](const at::Tensor& t, bool needed) {
    return needed ? at::empty_symint(t.sym_sizes(), t.options())
                  : at::empty({0}, t.defined() ? t.options() : in.hidden.options());
  };
  LinearGrads<n> grads{
      like(in.hidden, needs[0]), like(in.weight, needs[1]), like(in.bias, needs[2]), {}};
  for (size_t i = 0; i < n; ++i) {
    if (i != 1) grads.others[i] = like(in.others[i], needs[i == 0 ? 3 : i + 2]);
  }
  return grads;
}

// Autocast: a Linear runs in the type of autocast, as it does in torch.
inline at::Tensor cast_for_linear(const at::Tensor& t) {
  if (!t.defined()) return t;
  const auto device = t.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
}

}  // namespace fastvi
