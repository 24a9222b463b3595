// KL(q || p) of two Gaussians with log-variances v and v_p:
//   (e^(v - v_p) + (loc - loc_p)^2 e^(-v_p) - 1 - (v - v_p)) / 2
// with, for p = N(0, 1), loc_p = v_p = 0; and the same of two scales, from their ratio. No square
// and no exponential is formed that overflows where a half of it does not.
#pragma once

#include "engines/row_sum.h"
#include "maths/spread.h"

namespace fastvi {

struct GaussianKlParams : RowSumParams {
  bool standard_prior;
  bool of_scales;  // the operands are scales, not log-variances; of two Gaussians alone
};

FASTVI_DECLARE_KERNEL(gaussian_kl, GaussianKlParams);           // tasks: rows * num_segments
FASTVI_DECLARE_KERNEL(gaussian_kl_backward, GaussianKlParams);  // tasks: rows * num_segments

FASTVI_ISA_BEGIN

// A half of e^g - 1 - g without the cancellation at small g, by its series there.
template <class V>
FASTVI_HD V half_exp_excess(V g, V half_exp_g) {
  const V half = broadcast<V>(0.5);
  const auto near = abs(g) < broadcast<V>(0.25);
  const V far = half_exp_g - half - half * g;
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr double c[] = {1.0 / 10080, 1.0 / 1440, 1.0 / 240, 1.0 / 48, 1.0 / 12, 0.25};
    return select(near, horner(g, c) * (g * g), far);
  } else {
    constexpr double c[] = {1.0 / 12454041600, 1.0 / 958003200, 1.0 / 79833600, 1.0 / 7257600,
                            1.0 / 725760,      1.0 / 80640,     1.0 / 10080,    1.0 / 1440,
                            1.0 / 240,         1.0 / 48,        1.0 / 12,       0.25};
    return select(near, horner(g, c) * (g * g), far);
  }
}
template <class V>
FASTVI_HD V half_exp(V g) {
  return times(broadcast<V>(0.5), exp_factors(g));
}

struct GaussianKlStandardFamily {
  static constexpr int arity = 2;  // loc, log_var

  template <class V>
  static FASTVI_HD V value(const V (&x)[2]) {
    return multiply_add<false>(broadcast<V>(0.5) * x[0], x[0],
                               half_exp_excess(x[1], half_exp(x[1])));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[2], V (&d)[2]) {
    d[0] = x[0];
    d[1] = half_exp(x[1]) - broadcast<V>(0.5);
  }
  template <class V>
  using Sum = PlainSum<GaussianKlStandardFamily, V>;
  struct Quick {
    static constexpr int arity = 2;
    template <class V>
    static FASTVI_HD V value(const V (&x)[2]) {
      const V half = broadcast<V>(0.5);
      return multiply_add<false>(half * x[0], x[0], half_exp_excess(x[1], half * exp_within(x[1])));
    }
    template <class V>
    static FASTVI_HD void derivatives(const V (&x)[2], V (&d)[2]) {
      const V half = broadcast<V>(0.5);
      d[0] = x[0];
      d[1] = multiply_add<false>(half, exp_within(x[1]), -half);
    }
    template <class V>
    using Sum = PlainSum<Quick, V>;
  };
};

struct GaussianKlFamily {
  static constexpr int arity = 4;  // loc, log_var, prior loc, prior log_var
  static constexpr int kCudaBlocksInDouble = 1;

  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    const V gap = x[1] - x[3];
    const V u = standardised(x[0], x[2], inverse_sigma_of<SpreadKind::log_var>(x[3]));
    return multiply_add<false>(broadcast<V>(0.5) * u, u, half_exp_excess(gap, half_exp(gap)));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const Factors<V> inverse = inverse_sigma_of<SpreadKind::log_var>(x[3]);
    const V u = standardised(x[0], x[2], inverse);
    d[0] = times(u, inverse);
    d[2] = -d[0];
    d[1] = half_exp(x[1] - x[3]) - broadcast<V>(0.5);
    d[3] = multiply_add<false>(broadcast<V>(-0.5) * u, u, -d[1]);
  }
  template <class V>
  using Sum = PlainSum<GaussianKlFamily, V>;
  struct Quick {
    static constexpr int arity = 4;
    template <class V>
    static FASTVI_HD V value(const V (&x)[4]) {
      const V half = broadcast<V>(0.5);
      const V gap = x[1] - x[3];
      const V u = (x[0] - x[2]) * quick_inverse_sigma_of<SpreadKind::log_var>(x[3]);
      return multiply_add<false>(half * u, u, half_exp_excess(gap, half * exp_within(gap)));
    }
    template <class V>
    static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
      const V half = broadcast<V>(0.5);
      const V inverse = quick_inverse_sigma_of<SpreadKind::log_var>(x[3]);
      const V u = (x[0] - x[2]) * inverse;
      d[0] = u * inverse;
      d[2] = -d[0];
      d[1] = multiply_add<false>(half, exp_within(x[1] - x[3]), -half);
      d[3] = multiply_add<false>(-half * u, u, -d[1]);
    }
    template <class V>
    using Sum = PlainSum<Quick, V>;
  };
};

// Of scales s and s_p, with r = s / s_p: (r^2 - 1 - log r^2 + u^2) / 2, and r^2 - 1 from r - 1.
struct GaussianKlOfScalesFamily {
  static constexpr int arity = 4;  // loc, scale, prior loc, prior scale
  static constexpr int kCudaBlocksInDouble = 1;

  // s / s_p - 1, of which no digit is lost near 0.
  template <class V>
  static FASTVI_HD V relative(V scale, V prior, const Factors<V>& inverse_prior) {
    return standardised(scale, prior, inverse_prior);
  }
  // A half of r^2 - 1.
  template <class V>
  static FASTVI_HD V half_growth(V relative) {
    return (broadcast<V>(0.5) * relative) * (relative + broadcast<V>(2));
  }
  // log r, which may be finite where r is 0 or infinite.
  template <class V>
  static FASTVI_HD V log_ratio(V scale, V prior, V relative) {
    using S = scalar_t<V>;
    const V zero = broadcast<V>(0);
    const auto close = abs(relative) < broadcast<V>(S(0.25));
    const V near_one = log1p_reduced(select(close, relative, zero), zero);
    const V lift = lift_of(prior);
    const V ratio = (scale * lift) / (prior * lift);
    const auto plain = (ratio > broadcast<V>(S(0x1p-100f))) & (ratio < broadcast<V>(S(0x1p100f)));
    const V far = select(plain, log(ratio), log(scale) - log(prior));
    return select(close, near_one, far);
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    const Factors<V> inverse = inverse_sigma_of<SpreadKind::scale>(x[3]);
    const V u = standardised(x[0], x[2], inverse);
    const V r = relative(x[1], x[3], inverse);
    const V g = broadcast<V>(2) * log_ratio(x[1], x[3], r);
    return multiply_add<false>(broadcast<V>(0.5) * u, u,
                               half_exp_excess(g, half_growth(r) + broadcast<V>(0.5)));
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const V two = broadcast<V>(2);
    const Factors<V> inverse = inverse_sigma_of<SpreadKind::scale>(x[3]);
    const V u = standardised(x[0], x[2], inverse);
    const V growth = half_growth(relative(x[1], x[3], inverse));
    d[0] = times(u, inverse);
    d[2] = -d[0];
    d[1] = times(growth, inverse_sigma_of<SpreadKind::scale>(x[1])) * two;
    d[3] = times(multiply_add<false>(broadcast<V>(-0.5) * u, u, -growth), inverse) * two;
  }
  template <class V>
  using Sum = PlainSum<GaussianKlOfScalesFamily, V>;
};

FASTVI_ISA_END
}  // namespace fastvi

// Calls `...` with Family bound to the family of a call.
#define FASTVI_SWITCH_GAUSSIAN_KL(params, Family, ...) \
  if ((params).standard_prior) {                       \
    using Family = GaussianKlStandardFamily;           \
    __VA_ARGS__;                                       \
  } else if ((params).of_scales) {                     \
    using Family = GaussianKlOfScalesFamily;           \
    __VA_ARGS__;                                       \
  } else {                                             \
    using Family = GaussianKlFamily;                   \
    __VA_ARGS__;                                       \
  }
