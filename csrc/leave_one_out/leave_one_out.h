// leave_one_out: for each sample the log-mean-exp of the log-weights of the others, in O(K).
//
//   out_k = log( sum_{j != k} w_j / (K - 1) )
//   d out_k / d log w_j = w_j / (S - w_k) for j != k, and 0 for j = k
//
// S - w_k cancels where w_k is most of S. That can be one sample only, the largest, so the largest
// is kept apart: m1 is the largest log-weight, m2 the second largest, and
//
//   R = sum over all but the largest of exp(log w_j - m2),  d = exp(m2 - m1),  f_k = exp(log w_k -
//   m2) S - w_k = exp(m2) R                    for the largest, S - w_k = exp(m1) (1 + d (R - f_k))
//   for every other.
//
// In the last line the 1 is the largest weight itself: what cancels in R - f_k, of which R is at
// least f_k, is less than what is added. docs/design.md has the bound.
#pragma once

#include "maths/log_sum_exp.h"

namespace fastvi {

struct LeaveOneOutParams {
  const void* log_w;  // [K, B], without gaps
  int64_t num_samples, batch;
  Dtype dtype;

  // The columns are reduced in splits of K, a fixed number for a shape, whatever the machine. What
  // is kept of a split is three numbers for each column: see LargestApart and Signals.
  int64_t num_splits, split_size;
  void* partial;  // [3, num_splits, B]; combined in place by the CPU
  void* state;    // [3, B]: m1, m2, R

  void* out;  // [K, B]

  const void* grad;  // [K, B]
  void* signals;     // [3, B]
  void* grad_log_w;  // [K, B], the dtype of log_w
};

FASTVI_DECLARE_KERNEL(leave_one_out_reduce, LeaveOneOutParams);  // tasks: splits * column tiles
// tasks: B. On a card, leave_one_out_reduce has done it.
FASTVI_DECLARE_KERNEL(leave_one_out_combine, LeaveOneOutParams);
FASTVI_DECLARE_KERNEL(leave_one_out_write, LeaveOneOutParams);  // tasks: splits * column tiles
FASTVI_DECLARE_KERNEL(leave_one_out_backward_reduce, LeaveOneOutParams);
FASTVI_DECLARE_KERNEL(leave_one_out_backward_combine, LeaveOneOutParams);
FASTVI_DECLARE_KERNEL(leave_one_out_backward_write, LeaveOneOutParams);

// How the work is cut: about kTile log-weights to a task, in at most kColumns adjacent columns.
inline constexpr int64_t kLeaveOneOutTile = 4096;
inline constexpr int64_t kLeaveOneOutColumns = 256;
inline constexpr int64_t kLeaveOneOutMaxSplits = 1024;

FASTVI_HD int64_t leave_one_out_tiles(const LeaveOneOutParams& p) {
  return ceil_div(p.batch, kLeaveOneOutColumns);
}

FASTVI_ISA_BEGIN

// The largest log-weight, and the log-sum-exp of the others. A lone -inf largest is where it
// starts: what it hands on to the others is then an impossible sample, which adds nothing.
template <class V>
struct LargestApart {
  V largest = broadcast<V>(static_cast<scalar_t<V>>(-kInfinity));
  LogSumExp<V> others;

  FASTVI_HD void add(V x) {
    // A NaN is larger than nothing: it goes to the others, and shows in their sum.
    others.add(select(x > largest, largest, x));
    largest = max_number(largest, x);
  }
  FASTVI_HD void merge(const LargestApart& other) {
    others.merge(other.others);
    add(other.largest);
  }
  FASTVI_HD V first() const { return largest; }
  FASTVI_HD V second() const { return others.max; }
  FASTVI_HD V third() const { return others.sum; }
  static FASTVI_HD LargestApart from(V first, V second, V third) {
    LargestApart a;
    a.largest = first;
    a.others.max = second;
    a.others.sum = third;
    return a;
  }
};

// What the backward pass sums over k: q_k = g_k / (S - w_k), the one of largest magnitude kept
// apart, since a gradient is the sum of all q but one; and the g of the largest weight, whose q is
// on another scale.
template <class V>
struct Signals {
  V largest = broadcast<V>(0);
  V rest = broadcast<V>(0);
  V of_top = broadcast<V>(0);

  FASTVI_HD void add(V q) {
    const auto larger = abs(q) > abs(largest);
    rest = rest + select(larger, largest, q);
    largest = select(larger, q, largest);
  }
  FASTVI_HD void merge(const Signals& other) {
    rest = rest + other.rest;
    of_top = of_top + other.of_top;
    add(other.largest);
  }
  FASTVI_HD V first() const { return largest; }
  FASTVI_HD V second() const { return rest; }
  FASTVI_HD V third() const { return of_top; }
  static FASTVI_HD Signals from(V first, V second, V third) {
    Signals a;
    a.largest = first;
    a.rest = second;
    a.of_top = third;
    return a;
  }
};

// A column whose state is known, and what becomes of a sample in it.
template <class V>
struct LeaveOneOutColumn {
  using S = scalar_t<V>;
  V m1, m2, sum;
  V decay;  // exp(m2 - m1)
  V one;    // the largest weight over itself; 0 where every sample is impossible

  FASTVI_HD explicit LeaveOneOutColumn(const LargestApart<V>& a)
      : m1(a.largest), m2(a.others.max), sum(a.others.sum) {
    const auto possible = m1 > broadcast<V>(static_cast<S>(-kInfinity));
    one = select(possible, broadcast<V>(1), broadcast<V>(0));
    // The mean of impossible samples is -inf, not NaN from exp(m2 - -inf).
    decay = select(possible, exp_nonpositive(select(possible, m2 - m1, broadcast<V>(0))),
                   broadcast<V>(0));
  }

  // Whether x is the one largest. Where two are, neither hides the other, and neither is apart.
  FASTVI_HD auto top(V x) const { return x > m2; }

  // The weight over exp(m2), for all but the one largest.
  FASTVI_HD V weight(V x) const {
    const V distance = x - m2;
    const V zero = broadcast<V>(0);
    return exp_nonpositive(select(distance > zero, zero, distance));
  }

  // The sum of the others over exp(m1), for all but the one largest.
  FASTVI_HD V others(V weight) const { return one + decay * (sum - weight); }

  FASTVI_HD V value(V x, V others_count) const {
    const auto is_top = top(x);
    const V shift = select(is_top, m2, m1);
    const V mean = select(is_top, sum, others(weight(x))) / others_count;
    // An infinite weight among the others: exp(inf - inf) is in their sum.
    const V infinite = broadcast<V>(static_cast<S>(kInfinity));
    return select(shift == infinite, infinite, shift + log(mean));
  }

  // Whether all weights are finite and two are not zero, so that no sum here is infinite, NaN or 0.
  FASTVI_HD auto ordinary() const {
    return (m1 < broadcast<V>(static_cast<S>(kInfinity))) & (sum > broadcast<V>(0));
  }

  // value() in an ordinary column, where the mean is a normal number. `inverse` is 1 / count,
  // correctly rounded; the second product makes of the first the correctly rounded quotient.
  FASTVI_HD V ordinary_value(V x, V count, V inverse) const {
    const auto is_top = top(x);
    const V weight = exp_nonpositive(-max_number(broadcast<V>(0), m2 - x));
    const V of_others = fma(decay, sum - weight, broadcast<V>(1));
    const V total = select(is_top, sum, of_others);
    const V near = total * inverse;
    const V mean = fma(fma(-near, count, total), inverse, near);
    return shifted_log(mean, select(is_top, m2, m1));
  }

  // shift + log(mean): the exponent of the mean is added to the shift, and to both what is left.
  static FASTVI_HD V shifted_log(V mean, V shift) {
    if constexpr (sizeof(S) == 4) {
      using I = int_t<V>;
      // Minus half of what minus_two_log has: those of a relative error of 3e-8.
      constexpr float c[] = {0.08722358935f, -0.1436688714f,  0.14952284245f,
                             -0.1656238816f, 0.1995683149f,   -0.2500207422f,
                             0.33334185685f, -0.49999987965f, 0.999999974f};
      const I bits = bit_cast<I>(mean);
      const I power = (bits - 0x3f3504f3) & I(0xff800000);
      const V f = bit_cast<V>(bits - power) - broadcast<V>(1.0f);
      const V whole = fma(to_float(power), broadcast<V>(8.262958294867817e-08f), shift);
      return fma(f, horner(f, c), whole);
    } else {
      return shift + log_normal_range(mean);
    }
  }

  // q of a sample: 0 for the one largest.
  FASTVI_HD V signal(V x, V weight, V grad) const {
    return select(top(x), broadcast<V>(0), grad / others(weight));
  }

  FASTVI_HD void add(V x, V grad, Signals<V>* a) const {
    a->add(signal(x, weight(x), grad));
    a->of_top = a->of_top + select(top(x), grad, broadcast<V>(0));
  }

  // What each ordinary sample gets through the one largest: nothing where there is no weight beside
  // it, for no sample moves what is left when it is out.
  FASTVI_HD V through_top(const Signals<V>& a) const {
    const V zero = broadcast<V>(0);
    return select(sum == zero, zero, a.of_top / sum);
  }

  FASTVI_HD V gradient(V x, V grad, const Signals<V>& a, V through_top) const {
    const V zero = broadcast<V>(0);
    const V w = weight(x);
    const V q = signal(x, w, grad);
    // The sum of all q but this one, without taking a large one off again.
    const V without = select(q == a.largest, a.rest, (a.rest - q) + a.largest);
    const V ordinary = w * (decay * without + through_top);
    const V y = select(top(x), a.rest + a.largest, ordinary);
    // All samples impossible: no direction improves, so 0 whatever comes in.
    return select(one == zero, zero, y);
  }
};

FASTVI_ISA_END
}  // namespace fastvi
