// The logarithm of the gamma function and its derivative, for positive arguments, over the
// vocabulary of common/real.h.
//
// From 4 on both are Stirling's formula, whose rest is a polynomial in 1 / z^2 there; below, a step
// of the recurrence leads to where a polynomial holds. All three polynomials are Chebyshev fits, of
// absolute error below 2e-8 (float32) and 1e-16 (float64).
#pragma once

#include "common/math.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2) for z >= 4, from 1 / z.
template <class V>
FASTVI_HD V stirling_rest(V inverse) {
  const V t = inverse * inverse;
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {7.42721429e-4f, -2.77661487e-3f, 8.33333293e-2f};
    return horner(t, c) * inverse;
  } else {
    constexpr double c[] = {-1.739022397842236713e-01, 8.600886915362021272e-02,
                            -2.431970081518216137e-02, 6.210992276421006804e-03,
                            -1.912536810857489771e-03, 8.416721483780578798e-04,
                            -5.952373672607473806e-04, 7.936507901805894242e-04,
                            -2.777777777771287994e-03, 8.333333333333333131e-02};
    return horner(t, c) * inverse;
  }
}

// log z - digamma(z) for z >= 4, from 1 / z.
template <class V>
FASTVI_HD V digamma_rest(V inverse) {
  const V t = inverse * inverse;
  const V half = broadcast<V>(0.5f) * inverse;
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {-3.39705407e-3f, 3.940102e-3f, -8.33299044e-3f, 8.33333327e-2f};
    return multiply_add<false>(horner(t, c), t, half);
  } else {
    constexpr double c[] = {-2.763246144177119667,     1.317667749896684962,
                            -3.487583555569305199e-01, 7.978585893797804786e-02,
                            -2.100472976430344391e-02, 7.574376314502456231e-03,
                            -4.166653932895410094e-03, 3.968253907681641492e-03,
                            -8.333333333220180101e-03, 8.333333333333329807e-02};
    return multiply_add<false>(horner(t, c), t, half);
  }
}

// lgamma(2 + w) / (w (1 + w)) for w in [-1, 1].
template <class V>
FASTVI_HD V lgamma_near_two(V w) {
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {-3.63155219e-5f, 7.78713189e-5f, -5.90323996e-5f, 1.31388344e-4f,
                           -4.19005835e-4f, 9.43640607e-4f, -2.10490778e-3f, 4.99179268e-3f,
                           -1.2384473e-2f,  3.29655972e-2f, -1.00317298e-1f, 4.22784327e-1f};
    return horner(w, c);
  } else {
    constexpr double c[] = {
        -2.854100795970500747e-09, 5.896386164233319778e-09,  6.356552430287239162e-09,
        -1.307408188017119763e-08, -2.642527072312069897e-08, 5.475436197263081279e-08,
        -2.433211465809846564e-08, 5.165015376455897357e-08,  -2.063517828830934437e-07,
        4.340441010807057505e-07,  -8.453442762427366571e-07, 1.792392041178624205e-06,
        -3.849997161230253084e-06, 8.227705232611112843e-06,  -1.766105183616700952e-05,
        3.816760100036453229e-05,  -8.309521946458716563e-05, 1.825528312013513707e-04,
        -4.057073892742055959e-04, 9.153769052728799647e-04,  -2.108130834332546617e-03,
        4.998641165474130465e-03,  -1.238419219336452626e-02, 3.296500062114190510e-02,
        -1.003173016743539411e-01, 4.227843350984671806e-01};
    return horner(w, c);
  }
}

// log Gamma(z) for z > 0; infinite at 0 and at infinity, NaN below 0. Exactly zero at 1 and 2.
template <class V>
FASTVI_HD V lgamma(V z) {
  using S = scalar_t<V>;
  const V one = broadcast<V>(S(1)), four = broadcast<V>(S(4));
  const auto large = z >= four, below = z < one;
  const auto above = z >= broadcast<V>(S(3));
  // One logarithm for both: of z, or of the step from z into [1, 3].
  const V step = select(below, z, select(above, z - one, one));
  const V logarithm = log(select(large, z, step));
  const V w = select(below, z - one, select(above, z - broadcast<V>(S(3)), z - broadcast<V>(S(2))));
  const V near = lgamma_near_two(w) * (w * (w + one)) + select(below, -logarithm, logarithm);
  const V far = multiply_add<false>(
      z - broadcast<V>(S(0.5)), logarithm - one,
      stirling_rest(reciprocal(max_number(four, z))) + broadcast<V>(S(kHalfLog2Pi - 0.5)));
  return select(large, far, near);
}

// 1/z + 1/(z+1) + 1/(z+2) + 1/(z+3), which is digamma(z + 4) - digamma(z).
template <class V>
FASTVI_HD V digamma_steps(V z) {
  using S = scalar_t<V>;
  // Beyond this the steps are next to nothing, and their product would overflow.
  const V y = select(z > broadcast<V>(S(1e18)), broadcast<V>(S(1e18)), z);
  const V q = y * (y + broadcast<V>(S(3)));
  const V one = broadcast<V>(S(1));
  return multiply_add<false>(broadcast<V>(S(2)), y, broadcast<V>(S(3))) *
         (one / q + one / (q + broadcast<V>(S(2))));
}

// The derivative of log Gamma, for z > 0; infinite at 0, NaN below it.
template <class V>
FASTVI_HD V digamma(V z) {
  using S = scalar_t<V>;
  const V y = z + broadcast<V>(S(4));
  const V far = log(y) - digamma_rest(broadcast<V>(S(1)) / y);
  return select(z >= broadcast<V>(S(0)), far - digamma_steps(z),
                broadcast<V>(S(__builtin_nan(""))));
}

// log Gamma(z + x) - log Gamma(z) for z > 0, x >= 0, and its derivative in z. What the two have in
// common never appears, so z may be as large as one likes. Four steps of the recurrence lead both
// to where Stirling's formula holds, a = z + 4 and b = a + x:
//   (a - 1/2) log1p(x / a) + x (log b - 1) + rest(b) - rest(a) - log of the ratio of the steps.
// x log b is left to the caller, who has other multiples of x to add to it.
template <class V>
struct RisingFactorial {
  using S = scalar_t<V>;
  V z, x, a, b, inverse_a, inverse_b, log_ratio;

  FASTVI_HD RisingFactorial(V z_, V x_) : z(z_), x(x_) {
    const V one = broadcast<V>(S(1));
    a = z + broadcast<V>(S(4));
    b = a + x;
    inverse_a = one / a;
    inverse_b = one / b;
    log_ratio = log1p_nonnegative(x * inverse_a);
  }
  FASTVI_HD V value_but_x_log_b() const {
    const V three = broadcast<V>(S(3)), two = broadcast<V>(S(2)), most = broadcast<V>(S(1e18));
    const V y = select(z > most, most, z), t = z + x, u = select(t > most, most, t);
    const V p = y * (y + three), q = u * (u + three);
    const V steps = log((q / p) * ((q + two) / (p + two)));
    const V rest = stirling_rest(inverse_b) - stirling_rest(inverse_a);
    return multiply_add<false>(a - broadcast<V>(S(0.5)), log_ratio, (rest - x) - steps);
  }
  FASTVI_HD V derivative() const {
    const V rest = digamma_rest(inverse_a) - digamma_rest(inverse_b);
    return log_ratio + (rest + (digamma_steps(z) - digamma_steps(z + x)));
  }
};

FASTVI_ISA_END
}  // namespace fastvi
