// The Poisson log-density of a rate r:
//   value = x log r - r - log Gamma(x + 1)
//         = -x e(r / x - 1) - log(2 pi x) / 2 - rest(x),  e(w) = w - log(1 + w)
//   d/dx = log r - digamma(x + 1),   d/dlog r = x - r
// The second form is that of counts from 1 on: nothing in it cancels. What it needs is r - x, which
// a rounded exponential of log r would lose where the two are close: in float32 it is taken from
// float64 there.
#pragma once

#include "engines/log_density.h"
#include "maths/deviance.h"
#include "maths/gamma.h"

namespace fastvi {

FASTVI_DECLARE_KERNEL(poisson_log_prob, LogDensityParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(poisson_log_prob_backward, LogDensityParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

template <bool log_rate>
struct PoissonFamily {
  static constexpr int arity = 2;  // value x, rate r or log r
  static constexpr bool kIsHeavy = true;

  // The rate less the count. Below this the two units that an exponential is off by do not count.
  static constexpr float kMany = 16;
  struct ExpLess {
    template <class W>
    FASTVI_HD W operator()(W log_r, W x) const {
      return exp(log_r) - x;
    }
  };
  template <class V>
  static FASTVI_HD V distance(V x, V given, V rate) {
    V less = rate - x;
    if constexpr (log_rate && sizeof(scalar_t<V>) == 4) {
      const auto near = (x >= broadcast<V>(kMany)) & (abs(less) < x);
      if (any(near)) less = select(near, in_double(ExpLess{}, given, x), less);
    }
    return less;
  }

  // With c = max(x, 1): log c, w - log(r / c) for w = r / c - 1, and log(r / c).
  template <class V>
  static FASTVI_HD void compare(V x, V given, V rate, V less, V inverse, V log_count, V* excess,
                                V* log_ratio) {
    using S = scalar_t<V>;
    using R = Range<S>;
    const V one = broadcast<V>(S(1)), ratio = rate * inverse;
    const V w = select(x >= one, less * inverse, ratio - one);
    log_of_ratio(w, ratio, excess, log_ratio);
    // Where the rate, or its quotient, may be out of the range of its type.
    const auto end = (rate < broadcast<V>(R::low)) | (rate > broadcast<V>(R::high));
    if (any(end)) {
      V log_of_rate = given;
      if constexpr (!log_rate) log_of_rate = log(rate);
      const V far = log_of_rate - log_count;
      *excess = select(end, w - far, *excess);
      *log_ratio = select(end, far, *log_ratio);
    }
  }
  template <class V>
  static FASTVI_HD V value(const V (&operands)[2]) {
    using S = scalar_t<V>;
    const V one = broadcast<V>(S(1)), zero = broadcast<V>(S(0));
    const V x = operands[0], rate = positive_of<log_rate>(operands[1]);
    const auto large = x >= one;
    const V count = select(large, x, one), inverse = one / count;
    const V log_count = log_normal_range(count);
    V excess, log_ratio;
    compare(x, operands[1], rate, distance(x, operands[1], rate), inverse, log_count, &excess,
            &log_ratio);
    const V many = -multiply_add<false>(
        x, excess,
        multiply_add<false>(broadcast<V>(S(0.5)), log_count,
                            broadcast<V>(S(kHalfLog2Pi)) + stirling_rest(inverse)));
    const V few = (times_log(x, log_ratio) - rate) - lgamma_one_plus(select(large, zero, x));
    return select(x >= zero, select(large, many, few), broadcast<V>(S(__builtin_nan(""))));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&operands)[2], V (&d)[2]) {
    using S = scalar_t<V>;
    const V one = broadcast<V>(S(1)), zero = broadcast<V>(S(0));
    const V x = operands[0], rate = positive_of<log_rate>(operands[1]);
    const auto large = x >= one;
    const V count = select(large, x, one), inverse = one / count;
    const V less = distance(x, operands[1], rate);
    V excess, log_ratio;
    compare(x, operands[1], rate, less, inverse, log(count), &excess, &log_ratio);
    // digamma(x + 1) = log x + 1 / x - (log x - digamma(x)).
    const V many = log_ratio - (inverse - log_less_digamma(inverse));
    const V few = log_ratio - digamma_one_plus(select(large, zero, x));
    d[0] = select(x >= zero, select(large, many, few), broadcast<V>(S(__builtin_nan(""))));
    if constexpr (log_rate) {
      d[1] = -less;
    } else {
      // A rate of zero that was right about a count of zero has a derivative too.
      d[1] = select(x == zero, -one, -less / rate);
    }
  }
  template <class V>
  using Sum = PlainSum<PoissonFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
