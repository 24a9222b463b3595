// The running (maximum, sum) pair of a log-sum-exp.
#pragma once

#include "maths/math.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// sum = sum of exp(x - max). It starts at the lowest finite number, not at -inf: then x = -inf
// adds exp(-inf) = 0 instead of exp(-inf - -inf) = NaN, and a column of nothing but -inf ends as
// log 0 = -inf. A +inf ends in max, where the caller sees it; a NaN ends in sum.
template <class V>
struct LogSumExp {
  V max = broadcast<V>(lowest());
  V sum = broadcast<V>(0);

  static constexpr scalar_t<V> lowest() { return -largest_number<scalar_t<V>>(); }

  // One exponential: of minus the distance, whichever of the two is larger.
  FASTVI_HD void add(V x) {
    const V e = exp_nonpositive(-abs(x - max));
    sum = select(x > max, fma(sum, e, broadcast<V>(1)), sum + e);
    max = max_number(max, x);
  }

  FASTVI_HD void merge(const LogSumExp& other) {
    const V larger = max_number(max, other.max);
    sum = fma(sum, exp_nonpositive(max - larger), other.sum * exp_nonpositive(other.max - larger));
    max = larger;
  }
};

FASTVI_ISA_END
}  // namespace fastvi
