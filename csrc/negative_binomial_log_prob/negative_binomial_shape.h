// How a count x lies beside the mean m that a negative binomial of inverse dispersion t expects.
// With e(w) = w - log(1 + w) >= 0, u = (x - m) / (t + m) and q = m (t + x) / (t + m),
//   t e(u) + x e(q / x - 1) = t log((t + m) / (t + x)) + x log(x (t + m) / (m (t + x)))
// is what the density of x is below its largest over all m. Both terms are positive, and x - q is
// t u, so nothing cancels. The rest of the density, which m does not enter, is in
// negative_binomial_term.h.
#pragma once

#include "engines/log_density.h"
#include "maths/deviance.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// The inverse dispersion t from what is given: itself, its logarithm, or what the prepared families
// read, see `prepared_dispersion`. Above `most` the density is a Poisson one, and t is taken as
// `most`.
enum class DispersionKind { plain, log, prepared };

template <DispersionKind kind, class V>
struct Dispersion {
  using S = scalar_t<V>;
  using R = Range<S>;
  static constexpr S most = R::single ? S(1e37) : S(1e300);
  V given, theta;

  FASTVI_HD explicit Dispersion(V x) : given(x) {
    const V high = broadcast<V>(most);
    theta = positive_of<kind == DispersionKind::log>(x);
    theta = select(theta > high, high, theta);
    if constexpr (kind != DispersionKind::plain) {
      const auto below = theta < broadcast<V>(R::smallest);
      if (any(below)) theta = select(below, lifted() * broadcast<V>(R::drop), theta);
    }
  }
  // t times the lift of its type: of a t below the normal numbers, all digits.
  FASTVI_HD V lifted() const {
    if constexpr (kind == DispersionKind::log) {
      const V root = exp(broadcast<V>(S(0.5)) * given) * broadcast<V>(R::root_of_lift);
      return root * root;
    }
    const V plain = given * broadcast<V>(R::lift);
    if constexpr (kind == DispersionKind::plain) return plain;
    return select(given < broadcast<V>(S(0)), -given, plain);
  }
  FASTVI_HD V log_theta() const {
    if constexpr (kind == DispersionKind::log) return given;
    return log(theta);
  }
};

// What a prepared family reads as t: where t is below the normal numbers, minus the lifted one.
template <class V>
FASTVI_HD V prepared_dispersion(const Dispersion<DispersionKind::log, V>& t) {
  return select(t.theta < broadcast<V>(Range<scalar_t<V>>::smallest), -t.lifted(), t.theta);
}

template <class V>
struct NegativeBinomialShape {
  using S = scalar_t<V>;
  using R = Range<S>;
  V theta;         // t
  V share;         // t / (t + m)
  V mean_share;    // m / (t + m)
  V by_mean;       // t u / m
  V expected;      // q
  V direct;        // 1 - t (u + m / (t + m)), which is m / (t + m) - share (x - 1)
  V excess;        // e(u)
  V total_excess;  // t e(u)
  V log_total;     // log(1 + u), which is log((t + x) / (t + m))
  V count_excess;  // e(q / x - 1), where x >= 1
  V log_ratio;     // log(q / max(x, 1))

  // `inverse_x` is 1 / max(x, 1).
  template <DispersionKind kind>
  FASTVI_HD NegativeBinomialShape(V x, V mean, const Dispersion<kind, V>& t, V inverse_x)
      : theta(t.theta) {
    const V one = broadcast<V>(S(1)), low = broadcast<V>(R::low);
    const V inverse = one / (theta + mean);
    const V u = (x - mean) * inverse, r = (theta + x) * inverse;
    share = theta * inverse;
    const V distance = (x - mean) * share;  // x - q, where u alone may be below the normal numbers
    direct = less_than_one(x, mean, theta) * inverse;
    mean_share = mean * inverse;
    by_mean = distance / mean;
    expected = mean * r;
    log_of_ratio(u, r, &excess, &log_total);
    total_excess = theta * excess;
    const V ratio = expected * inverse_x;
    log_of_ratio(select(x >= one, -distance * inverse_x, ratio - one), ratio, &count_excess,
                 &log_ratio);
    const auto rare = (theta < low) | (mean < low);
    if (any(rare)) at_the_ends(x, mean, t, inverse_x, rare);
  }

  // m - t (x - 1), for m and t that may be lifted: a difference that is rounded once.
  static FASTVI_HD V less_than_one(V x, V mean, V theta) {
    const V one = broadcast<V>(S(1)), less = x - one;
    return difference_from_product(theta, less, mean) + theta * ((less - x) + one);
  }

 private:
  template <class M>
  static FASTVI_HD V lifted(M mask, V x) {
    return x * select(mask, broadcast<V>(R::lift), broadcast<V>(S(1)));
  }
  // The logarithm that a lift has added, which is `log_lift` or nothing.
  template <class M>
  static FASTVI_HD V lift_of(M mask) {
    return select(mask, broadcast<V>(R::log_lift), broadcast<V>(S(0)));
  }

  // The same where a quotient may leave the range of the type: tiny numbers are lifted first. Two
  // numbers of about the same size are both lifted, or neither is.
  template <DispersionKind kind, class M>
  FASTVI_HD void at_the_ends(V x, V mean, const Dispersion<kind, V>& t, V inverse_x, M rare) {
    const V one = broadcast<V>(S(1)), zero = broadcast<V>(S(0)), low = broadcast<V>(R::low);
    const V smallest = broadcast<V>(R::smallest), drop = broadcast<V>(R::drop);
    const V lift = broadcast<V>(R::lift);
    const V high_theta = t.lifted();
    const V total = theta + mean, n = theta + x;
    const auto tiny = total < broadcast<V>(R::middle);
    const auto tiny_mean = tiny | (mean < low), tiny_theta = tiny | (theta < low);
    const auto tiny_n = (n < low) | (tiny & (n < broadcast<V>(S(100) * R::middle)));
    const V inverse = one / select(tiny, high_theta + mean * lift, total);
    const V r = select(tiny_n, high_theta + x * lift, n) * inverse;
    const V log_r = lift_of(tiny) - lift_of(tiny_n);
    const V high_mean = lifted(tiny_mean, mean);
    const V q = high_mean * inverse, log_q = lift_of(tiny) - lift_of(tiny_mean);
    // Beside a large t the quotient q leaves the range even so, and q n does not.
    const auto large_theta = theta > broadcast<V>(S(1) / R::middle);
    const V product = select(large_theta, high_mean * r, q * n);
    const V part = select(tiny_theta, high_theta, theta) * inverse;
    const V drop_theta = select(tiny, one, select(tiny_theta, drop, one));
    const V drop_mean = select(tiny, one, select(tiny_mean, drop, one));
    const V u = lifted(tiny, (x - mean) * inverse);
    const V distance = ((x - mean) * part) * drop_theta;
    const V of_one =
        less_than_one(x, select(tiny, mean * lift, mean), select(tiny, high_theta, theta)) *
        inverse;
    direct = select(rare, of_one, direct);
    share = select(rare, part * drop_theta, share);
    mean_share = select(rare, q * drop_mean, mean_share);
    // The part may be below the normal numbers once it is dropped, and the slope above them.
    const V relative = (x - mean) / mean;
    const V slope = select(abs(relative) < broadcast<V>(S(kInfinity)), relative * part,
                           ((x - mean) * part) / mean);
    by_mean = select(rare, slope * drop_theta, by_mean);
    expected = select(rare, product * drop_mean, expected);

    V by_u, log_u;
    log_of_ratio(u, select(r < smallest, smallest, r), &by_u, &log_u);
    // A mean below zero is none.
    by_u = select(mean >= zero, by_u - log_r, broadcast<V>(S(__builtin_nan(""))));
    log_u = log_u + log_r;
    excess = select(rare, by_u, excess);
    log_total = select(rare, log_u, log_total);
    // A large u may have overflowed; t u has not.
    const V far = distance - theta * log_u;
    total_excess = select(rare, select(u > one, far, theta * by_u), total_excess);

    const V quotient = select(large_theta, product * inverse_x, q * (n * inverse_x));
    const V ratio = select(quotient < smallest, smallest, quotient);
    V by_w, log_w;
    log_of_ratio(select(x >= one, -distance * inverse_x, ratio - one), ratio, &by_w, &log_w);
    // Nothing is expected of a mean of zero, and any other count is impossible.
    const V infinity = broadcast<V>(S(kInfinity));
    by_w = select(mean == zero, infinity, by_w - log_q);
    const V few = log(select(large_theta, product, q)) + select(large_theta, zero, log(n));
    log_w = select(x >= one, log_w + log_q, few + log_q);
    log_w = select(mean == zero, -infinity, log_w);
    count_excess = select(rare, by_w, count_excess);
    log_ratio = select(rare, log_w, log_ratio);
  }
};

FASTVI_ISA_END
}  // namespace fastvi
