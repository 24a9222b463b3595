// The negative binomial log-density on a card, where a count and its dispersion meet many means:
// what these share is computed once, see negative_binomial_term.h, and a mean costs two logarithms.
// A card takes a reciprocal and an exponential in a few instructions, so the dispersion is read as
// it was given, and 1 / max(x, 1) is not prepared.
#pragma once

#include "engines/row_sum.cuh"
#include "negative_binomial_log_prob/negative_binomial_log_prob.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// w - log r as log_of_ratio has it, in fewer instructions: r = 1 + w serves below w = -1/2 alone.
// Where r has overflowed or, for a w above that, is zero, the result is not finite.
template <class V>
FASTVI_HD V excess_of_ratio(V w, V r) {
  using S = scalar_t<V>;
  using I = int_t<V>;
  constexpr bool single = sizeof(S) == 4;
  constexpr auto half_root = I(single ? 0x3f3504f3 : 0x3fe6a09e667f3bcdll);
  constexpr auto one_bits = I(single ? 0x3f800000 : 0x3ff0000000000000ll);
  constexpr auto mantissa = I(single ? 0x7fffff : 0xfffffffffffffll);
  // The exponent of two where its bits are.
  const I e = (bit_cast<I>(r) - half_root) & ~mantissa;
  const V scale = bit_cast<V>(one_bits - e), one = broadcast<V>(1);
  const V f = select(w >= broadcast<V>(S(-0.5)), multiply_add<false>(w, scale, scale - one),
                     multiply_add<false>(r, scale, -one));
  constexpr S unit = single ? S(0x1p-23) : S(0x1p-52);
  constexpr S log2_high = Log2Parts<S>::high, log2_low = Log2Parts<S>::low;
  const V power = to_float(e);
  const V rest =
      multiply_add<false>(power, broadcast<V>(-log2_low * unit),
                          multiply_add<false>(power, broadcast<V>(-log2_high * unit), w - f));
  if constexpr (single) return multiply_add<false>(log1p_excess_over_square(f), f * f, rest);
  return rest + log1p_excess(f);
}

// What of NegativeBinomialShape is wanted of a count x of zero or from 1 on, and of m and t that
// are far from the ends of their type; `right` says whether they are.
template <bool log_dispersion, class V>
struct OrdinaryShape {
  using R = Range<scalar_t<V>>;
  V theta, inverse, u, r;
  bool right;

  FASTVI_HD OrdinaryShape(V x, V mean, V given) : theta(positive_of<log_dispersion>(given)) {
    // The least m or t over it is still a normal number.
    constexpr auto high = scalar_t<V>(R::single ? 1e17 : 1e127);
    const V total = theta + mean, low = broadcast<V>(R::low);
    right = (theta >= low) & (mean >= low) & (total <= broadcast<V>(high)) &
            ((x >= broadcast<V>(1)) | (x == broadcast<V>(0)));
    inverse = reciprocal(total);
    u = (x - mean) * inverse;
    r = (theta + x) * inverse;
  }
  // The density from the term of its count and dispersion.
  FASTVI_HD V value(V x, V mean, V term) const {
    const V count = max_number(x, broadcast<V>(1)), inverse_x = reciprocal(count);
    const V ratio = (mean * r) * inverse_x;
    const V excess = excess_of_ratio((-u * theta) * inverse_x, ratio);
    const V of_count = select(x == broadcast<V>(0), ratio, excess);
    return multiply_add<false>(-count, of_count,
                               multiply_add<false>(-theta, excess_of_ratio(u, r), term));
  }
  // As negative_binomial_parameters; NaN where it is not right. Gives n(0), the density of none.
  FASTVI_HD V parameters(V x, V mean, V slope, V* by_mean, V* by_theta) const {
    const V one = broadcast<V>(1), nan = broadcast<V>(scalar_t<V>(__builtin_nan("")));
    const auto none = x == broadcast<V>(0), large = theta >= one;
    const V share = theta * inverse, mean_share = mean * inverse;
    V excess, log_total;
    log_of_ratio(u, r, &excess, &log_total);
    const V total_excess = theta * excess;
    const V by = select(none, -share, (x - mean) * share * reciprocal(mean));
    *by_mean = select(right, by, nan);
    const V direct = NegativeBinomialShape<V>::less_than_one(x, mean, theta) * inverse;
    const V logarithms = (log_total + slope) + mean_share;
    if constexpr (log_dispersion) {
      *by_theta = select(none | large, slope - total_excess,
                         multiply_add<false>(theta, logarithms, direct));
    } else {
      const V quotient = select(large, slope - total_excess, direct) * reciprocal(theta);
      *by_theta = select(none, slope - excess, select(large, quotient, quotient + logarithms));
    }
    return -(mean * r + total_excess);
  }
};

// The sum of a Quick family whose value says of itself whether it is right.
template <class Quick, class V>
struct CheckedSum {
  V recent = broadcast<V>(0), total = broadcast<V>(0);
  bool right = true;
  FASTVI_HD void add(const V (&x)[Quick::arity]) {
    bool is_right;
    recent = recent + Quick::value(x, &is_right);
    right &= is_right;
  }
  FASTVI_HD void flush() {
    total = right ? total + recent : broadcast<V>(scalar_t<V>(__builtin_nan("")));
    recent = broadcast<V>(0);
  }
};

// How a card runs a family of so many inputs, the last of which a launch of its own has prepared.
template <int inputs>
struct CountsOnCard {
  static constexpr int arity = inputs;
  static constexpr int kCudaBlocks = 2;
  static constexpr int kCudaBlocksInDouble = 1, kCudaBackwardBlocksInDouble = 1;
  static constexpr bool kIsHeavy = true, kIsPrepared = true, kCudaSpreadsRest = true;
};

// Value x, mean m, inverse dispersion t or log t, term.
template <bool log_dispersion>
struct NegativeBinomialCardFamily : CountsOnCard<4> {
  template <class V>
  static FASTVI_HD NegativeBinomialShape<V> shape(V x, V mean, V given) {
    const Dispersion<kDispersionKind<log_dispersion>, V> t(given);
    return NegativeBinomialShape<V>(x, mean, t, inverse_count(x));
  }
  template <class V>
  static FASTVI_HD V value(const V (&x)[4]) {
    return negative_binomial_sum(x[0], shape(x[0], x[1], x[2]), x[3]);
  }
  template <class V>
  static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
    const auto of_x = shape(x[0], x[1], x[2]);
    negative_binomial_parameters<log_dispersion>(x[0], of_x, x[3], &d[1], &d[2]);
    d[0] = d[3] = broadcast<V>(0);
  }
  template <class V>
  using Sum = PlainSum<NegativeBinomialCardFamily, V>;

  struct Quick {
    static constexpr int arity = 4;
    template <class V>
    static FASTVI_HD V value(const V (&x)[4], bool* right) {
      const OrdinaryShape<log_dispersion, V> shape(x[0], x[1], x[2]);
      *right = shape.right;
      return shape.value(x[0], x[1], x[3]);
    }
    template <class V>
    static FASTVI_HD void derivatives(const V (&x)[4], V (&d)[4]) {
      const OrdinaryShape<log_dispersion, V> shape(x[0], x[1], x[2]);
      shape.parameters(x[0], x[1], x[3], &d[1], &d[2]);
      d[0] = d[3] = broadcast<V>(0);
    }
    template <class V>
    using Sum = CheckedSum<Quick, V>;
  };
};

FASTVI_ISA_END

// A density of counts, prepared or not.
template <template <bool> class Plain, template <bool> class Prepared, bool backward>
const char* launch_counts(const LogDensityParams& p, void* stream) {
  if (p.prepared) {
    FASTVI_SWITCH_LOG_PARAMETER(p, Prepared, Family,
                                return (launch_prepared_row_sum<Family, backward>(p, stream)))
  }
  FASTVI_SWITCH_LOG_PARAMETER(p, Plain, Family,
                              return (launch_row_sum<Family, backward>(p, stream)))
}

}  // namespace fastvi
