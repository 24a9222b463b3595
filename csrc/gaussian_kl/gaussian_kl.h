// KL(q || p) of two Gaussians with log-variances v and v_p:
//   (e^(v - v_p) + (loc - loc_p)^2 e^(-v_p) - 1 - (v - v_p)) / 2
// with, for p = N(0, 1), loc_p = v_p = 0.
#pragma once

#include "common/row_sum.h"

namespace fastvi {

struct GaussianKlParams : RowSumParams {
  bool standard_prior;
};

FASTVI_DECLARE_KERNEL(gaussian_kl, GaussianKlParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(gaussian_kl_backward, GaussianKlParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

// e^g - 1 - g without the cancellation at small g, by its series there.
template <class V>
FASTVI_HD V exp_excess(V g, V exp_g) {
  constexpr double c[] = {1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5};
  constexpr double reach = sizeof(scalar_t<V>) == 4 ? 0.25 : 0.004;
  return select(abs(g) < broadcast<V>(static_cast<scalar_t<V>>(reach)), horner(g, c) * (g * g),
                exp_g - broadcast<V>(1) - g);
}

struct GaussianKlStandardFamily {
  static constexpr int arity = 2;  // loc, log_var

  template <class V>
  static FASTVI_HD V value(const V (&x)[2]) {
    return broadcast<V>(0.5) * multiply_add<false>(x[0], x[0], exp_excess(x[1], exp(x[1])));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[2], V (&d)[2]) {
    d[0] = x[0];
    d[1] = broadcast<V>(0.5) * (exp(x[1]) - broadcast<V>(1));
  }
  template <class V>
  using Sum = PlainSum<GaussianKlStandardFamily, V>;
};

struct GaussianKlFamily {
  static constexpr int arity = 4;  // loc, log_var, prior loc, prior log_var

  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    const V gap = x[1] - x[3];
    const V distance = x[0] - x[2];
    return broadcast<V>(0.5) *
           multiply_add<false>(distance * distance, exp(-x[3]), exp_excess(gap, exp(gap)));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const V excess = exp(x[1] - x[3]) - broadcast<V>(1);
    const V distance = x[0] - x[2];
    d[0] = distance * exp(-x[3]);
    d[2] = -d[0];
    d[1] = broadcast<V>(0.5) * excess;
    d[3] = broadcast<V>(-0.5) * multiply_add<false>(distance, d[0], excess);
  }
  template <class V>
  using Sum = PlainSum<GaussianKlFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi
