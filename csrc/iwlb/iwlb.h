// iwlb: log-mean-exp of the log-weights over K, its Renyi relatives, and the normalised weights.
//
//   c = 1 - alpha,   bound = (log sum_k exp(c log w_k) - log K) / c,   alpha = 1: mean_k log w_k
//   d bound / d log w_k = softmax over k of c log w_k
#pragma once

#include "maths/log_sum_exp.h"

namespace fastvi {

struct IwlbParams {
  // log w = log_px, or log_px + log_pz - log_qz where the last two are not null. [K, B] each, all
  // with the same strides in elements; one of the two strides is 1.
  const void* log_px;
  const void* log_pz;
  const void* log_qz;
  int64_t num_samples, batch, stride_k, stride_b;
  Dtype dtype;
  double alpha;

  // The columns are reduced in splits of K, a fixed number for a shape, whatever the machine.
  int64_t num_splits, split_size;
  void* partial_max;  // [iwlb_partial_rows, B]
  void* partial_sum;  // [iwlb_partial_rows, B]

  void* bound;  // [B]
  void* shift;  // [B] max_k c log w_k
  void* total;  // [B] sum_k exp(c log w_k - shift)

  const void* grad_bound;  // [B]
  void* grad_log_w;        // [K, B], strides as log_px, its dtype
};

FASTVI_DECLARE_KERNEL(iwlb_partial, IwlbParams);   // tasks: num_splits * column_tiles
FASTVI_DECLARE_KERNEL(iwlb_combine, IwlbParams);   // tasks: B; on a card, iwlb_partial has done it
FASTVI_DECLARE_KERNEL(iwlb_backward, IwlbParams);  // tasks: num_splits * column_tiles

// How the work is cut. A tile of log-weights is read twice and stays in the first-level cache.
inline constexpr int64_t kIwlbTile = 4096;
inline constexpr int64_t kIwlbColumns = 256;
inline constexpr int64_t kIwlbMaxSplits = 1024;

FASTVI_HD int64_t iwlb_columns(const IwlbParams& p) {
  // Columns side by side where they are adjacent in memory, else one at a time.
  return p.stride_b == 1 && p.batch > 1 ? kIwlbColumns : 1;
}
FASTVI_HD int64_t iwlb_column_tiles(const IwlbParams& p) {
  return ceil_div(p.batch, iwlb_columns(p));
}

// A card puts splits together in groups of this many, and then the groups, in rows of their own.
inline constexpr int kIwlbGroup = 32;
FASTVI_HD int64_t iwlb_groups(const IwlbParams& p) {
  return p.num_splits > kIwlbGroup ? ceil_div(p.num_splits, kIwlbGroup) : 0;
}
FASTVI_HD int64_t iwlb_partial_rows(const IwlbParams& p) { return p.num_splits + iwlb_groups(p); }

// The splits for a card: blocks of 256 threads for all of its multiprocessors at once, or a few
// times as many, and to each thread a batch of two packs at least. The same for every card, for
// the results depend on them; the numbers are those of a large one.
inline constexpr int64_t kIwlbCardBlocks = 4 * 132;
inline void iwlb_split_for_card(int64_t pack, IwlbParams* p) {
  const int64_t columns = min_i64(iwlb_columns(*p), p->batch), tiles = iwlb_column_tiles(*p);
  int64_t side = 1;
  while (side * pack < columns) side *= 2;
  // Rows of a batch; or samples side by side.
  const int64_t step = iwlb_columns(*p) > 1 ? 512 / side : 512 * pack;
  int64_t least = 0;
  for (int64_t waves = 1; waves <= 4; ++waves) {
    const int64_t wanted = max_i64(1, kIwlbCardBlocks * waves / max_i64(1, tiles));
    const int64_t size = ceil_div(ceil_div(p->num_samples, wanted), step) * step;
    const int64_t blocks = tiles * ceil_div(p->num_samples, size);
    const int64_t time = ceil_div(blocks, kIwlbCardBlocks) * size;
    if (least == 0 || time < least) {
      least = time;
      p->split_size = size;
    }
  }
  // A split beyond the last sample would be as good as this.
  p->split_size = max_i64(p->split_size, ceil_div(p->num_samples, kIwlbMaxSplits));
  p->num_splits = ceil_div(p->num_samples, p->split_size);
}

FASTVI_ISA_BEGIN

// One log-weight, or a vector of them, by a loader of elements.
template <class V, class T, class Load>
FASTVI_HD V iwlb_log_weight(const IwlbParams& p, int64_t i, Load load) {
  V x = load(static_cast<const T*>(p.log_px) + i);
  if (p.log_pz != nullptr) {
    x = x + load(static_cast<const T*>(p.log_pz) + i) - load(static_cast<const T*>(p.log_qz) + i);
  }
  return x;
}

// The bound of columns from their finished (shift, total), in double.
struct IwlbBound {
  double num_samples, alpha;
  template <class D>
  FASTVI_HD D operator()(D shift, D total) const {
    const D mean = total / broadcast<D>(num_samples);
    if (alpha == 1.0) return mean;
    const D infinity = broadcast<D>(kInfinity), c = broadcast<D>(1.0 - alpha);
    // An infinite weight: the sum over it is exp(inf - inf); the bound is infinite.
    if (!any(shift != infinity)) return infinity / c;
    // log(total / K), not log(total) - log(K): equal weights give exactly their value.
    return select(shift == infinity, infinity, shift + log(mean)) / c;
  }
};
template <class V>
FASTVI_HD V iwlb_bound(const IwlbParams& p, V shift, V total) {
  const IwlbBound bound{static_cast<double>(p.num_samples), p.alpha};
  return in_double(bound, shift, total);
}

// The normalised weight of one sample, times the gradient of the bound.
template <class V>
FASTVI_HD V iwlb_weight(V scaled, V shift, V scale_by_total) {
  return exp_nonpositive(scaled - shift) * scale_by_total;
}
// The same where c < 0 makes an impossible sample infinite, and inf - inf must not be NaN.
template <class V>
FASTVI_HD V iwlb_finite_weight(V scaled, V shift, V scale_by_total) {
  return exp_nonpositive(-max_number(broadcast<V>(0), shift - scaled)) * scale_by_total;
}

// The gradient of the bound over the total. Where the bound is -inf no direction improves it, so 0:
// no sample is possible, or, for alpha of 1 and more, one is not.
template <class V>
FASTVI_HD V iwlb_inverse(const IwlbParams& p, V shift, V total, V grad) {
  using S = scalar_t<V>;
  const V zero = broadcast<V>(0), infinity = broadcast<V>(static_cast<S>(kInfinity));
  if (p.alpha == 1.0) {
    const V mean = grad / broadcast<V>(static_cast<S>(p.num_samples));
    return select(total == -infinity, zero, mean);
  }
  const V inverse = select(total == zero, zero, grad / total);
  return p.alpha < 1.0 ? inverse : select(shift == infinity, zero, inverse);
}

FASTVI_ISA_END
}  // namespace fastvi
