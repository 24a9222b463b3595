// The Gaussian log-density, with u = (x - loc) / sigma:
//   value = -u^2 / 2 - log sigma - log(2 pi) / 2
//   d/dx = -u / sigma,   d/dloc = u / sigma,   d/dlog sigma = u^2 - 1
#pragma once

#include "engines/row_sum.h"
#include "maths/spread.h"

namespace fastvi {

struct GaussianLogProbParams : RowSumParams {
  SpreadKind spread_kind;
  // The operands are x, loc, 1 / sigma and log sigma, see PreparedGaussianFamily.
  bool prepared;
};

FASTVI_DECLARE_KERNEL(gaussian_log_prob, GaussianLogProbParams);  // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(gaussian_log_prob_backward,
                      GaussianLogProbParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

// The derivative by the spread: u^2 - 1, or a half of it, or a sigma-th. A square may overflow
// where the density, a half of it, and what is divided by sigma do not.
template <SpreadKind kind, class V>
FASTVI_HD V by_spread(V u, const Factors<V>& inverse_sigma) {
  if constexpr (kind == SpreadKind::log_scale) {
    return multiply_add<false>(u, u, broadcast<V>(-1));
  } else if constexpr (kind == SpreadKind::log_var) {
    return multiply_add<false>(u * broadcast<V>(0.5), u, broadcast<V>(-0.5));
  } else {
    const V quarter = multiply_add<false>(u * broadcast<V>(0.25), u, broadcast<V>(-0.25));
    return times(quarter, inverse_sigma) * broadcast<V>(4);
  }
}

template <SpreadKind kind>
struct GaussianFamily {
  static constexpr int arity = 3;  // value x, loc, spread

  template <class V>
  static FASTVI_HD V at(V u, V spread) {
    const V constant = broadcast<V>(scalar_t<V>(-kHalfLog2Pi));
    V rest;
    if constexpr (kind == SpreadKind::log_var) {
      rest = multiply_add<false>(spread, broadcast<V>(-0.5), constant);
    } else {
      rest = constant - log_sigma_of<kind>(spread);
    }
    return multiply_add<false>(u * broadcast<V>(-0.5), u, rest);
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[3]) {
    return at(standardised(x[0], x[1], inverse_sigma_of<kind>(x[2])), x[2]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
    const Factors<V> inverse = inverse_sigma_of<kind>(x[2]);
    const V u = standardised(x[0], x[1], inverse);
    d[1] = times(u, inverse);
    d[0] = -d[1];
    d[2] = by_spread<kind>(u, inverse);
  }
  template <class V>
  using Sum = PlainSum<GaussianFamily, V>;
  struct Quick {
    static constexpr int arity = 3;
    template <class V>
    static FASTVI_HD V value(const V (&x)[3]) {
      const V u = (x[0] - x[1]) * quick_inverse_sigma_of<kind>(x[2]);
      return at(u, x[2]);
    }
    template <class V>
    static FASTVI_HD void derivatives(const V (&x)[3], V (&d)[3]) {
      const V inverse = quick_inverse_sigma_of<kind>(x[2]);
      const V u = (x[0] - x[1]) * inverse;
      d[1] = u * inverse;
      d[0] = -d[1];
      d[2] = by_spread<kind>(u, Factors<V>{broadcast<V>(1), inverse});
    }
    template <class V>
    using Sum = PlainSum<Quick, V>;
  };
};

// The same where one spread serves many rows: its exponential and logarithm are taken once, not
// once a row. On CPU alone: on a card they hide behind the memory. Only for scales far from the
// ends of their type, where one number holds 1 / sigma.
template <SpreadKind kind>
struct PreparedGaussianFamily {
  static constexpr int arity =
      4;  // value x, loc, 1 / sigma (which stands for the spread), log sigma

  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    const V u = (x[0] - x[1]) * x[2];
    const V rest = -x[3] - broadcast<V>(static_cast<scalar_t<V>>(kHalfLog2Pi));
    return multiply_add<false>(u * broadcast<V>(-0.5), u, rest);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const V u = (x[0] - x[1]) * x[2];
    d[1] = u * x[2];
    d[0] = -d[1];
    d[2] = by_spread<kind>(u, Factors<V>{broadcast<V>(1), x[2]});
    d[3] = broadcast<V>(0);
  }
  template <class V>
  using Sum = PlainSum<PreparedGaussianFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
