// What the logarithm of the gamma function and its derivative are beside their leading terms, over
// the vocabulary of simd/real.h. From 1 on these are smooth functions of 1 / z, below 1 of z: the
// polynomials interpolate them at Chebyshev's points on [0, 1], with an absolute error below 2e-8
// (float32) and 6e-16 (float64).
#pragma once

#include "maths/math.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// log Gamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2) for z >= 1, from 1 / z: what Stirling's
// formula leaves, 0.081 at most.
template <class V>
FASTVI_HD V stirling_rest(V inverse) {
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {0.000142218938f, -0.000645669876f, 0.00106353313f, -6.09097333e-05f,
                           -0.00277068815f, -3.49734535e-07f, 0.0833333358f};
    return horner(inverse, c) * inverse;
  } else {
    constexpr double c[] = {
        -1.466237236101846253e-04, 1.603125304255146200e-03,  -8.117612393690323142e-03,
        2.519031029791534565e-02,  -5.333706092061830939e-02, 8.094702366876606325e-02,
        -8.946488081970209449e-02, 7.066055393153046482e-02,  -3.630011489761357513e-02,
        7.183094947469426811e-03,  5.313130817249451382e-03,  -4.791501118442647277e-03,
        8.886856605161268805e-04,  6.539066370335415825e-04,  2.827485528387757251e-05,
        -5.982660032098553087e-04, 2.249122481758171156e-07,  7.936397603098573452e-04,
        3.292305857250616812e-10,  -2.777777782959439407e-03, 3.230283609181056598e-14,
        8.333333333333330095e-02};
    return horner(inverse, c) * inverse;
  }
}

// (log z - digamma(z) - 1 / 2z) z^2 for z >= 1, from 1 / z.
template <class V>
FASTVI_HD V digamma_rest(V inverse) {
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {-0.000322592969f, 0.00200619828f,  -0.0051044696f,   0.00605148263f,
                           -0.000465427584f, -0.00828049518f, -2.38085158e-06f, 0.0833333507f};
    return horner(inverse, c);
  } else {
    constexpr double c[] = {
        -1.365669649318463274e-03, 1.447846473822089232e-02,  -7.048496470868149955e-02,
        2.076269215088131781e-01,  -4.088248786932529022e-01, 5.559430562048179869e-01,
        -5.076909723348469461e-01, 2.557042146506213198e-01,  3.961633369670371219e-02,
        -2.003592207564506289e-01, 1.878561091608021705e-01,  -9.386966058367907095e-02,
        1.952030382887562712e-02,  3.773825414213039051e-03,  5.422721689247169893e-04,
        -4.222574933002488408e-03, 4.039823312029121545e-06,  3.968059740733616281e-03,
        5.713246446355258173e-09,  -8.333333422405215032e-03, 5.524364223911907634e-13,
        8.333333333333275972e-02};
    return horner(inverse, c);
  }
}

// log Gamma(1 + y) for y in [0, 1]. Exactly zero at both ends.
template <class V>
FASTVI_HD V lgamma_one_plus(V y) {
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {0.00238831132f, -0.0135253789f, 0.0359757654f,
                           -0.062913768f,  0.0879035443f,  -0.1143739f,
                           0.155362889f,   -0.245248765f,  0.577215672f};
    return horner(y, c) * (y * (y - broadcast<V>(1)));
  } else {
    constexpr double c[] = {
        -1.804276273750086932e-05, 1.997467933573164958e-04,  -1.048455901058822828e-03,
        3.491978914302706211e-03,  -8.359294535802178419e-03, 1.551652331352655796e-02,
        -2.366674070422273429e-02, 3.123483138409024334e-02,  -3.744008639927311199e-02,
        4.253698876131425943e-02,  -4.730180374111879471e-02, 5.250452708572356936e-02,
        -5.876948854656978416e-02, 6.673070951748116819e-02,  -7.731808140175613908e-02,
        9.223900346937745354e-02,  -1.151465423877968547e-01, 1.554342658606526484e-01,
        -2.452513685225556905e-01, 5.772156649015328655e-01};
    return horner(y, c) * (y * (y - broadcast<V>(1)));
  }
}

// digamma(1 + y) for y in [0, 1].
template <class V>
FASTVI_HD V digamma_one_plus(V y) {
  if constexpr (sizeof(scalar_t<V>) == 4) {
    constexpr float c[] = {-0.0159553122f, 0.103758857f, -0.312547803f, 0.593677998f,
                           -0.830581427f,  0.964125335f, -1.02652907f,  1.08110082f,
                           -1.20198154f,   1.64493227f,  -0.577215672f};
    return horner(y, c);
  } else {
    constexpr double c[] = {
        2.530424777531394389e-04,  -3.036511934987013578e-03, 1.730181024609217869e-02,
        -6.253333456895958375e-02, 1.619016976858759504e-01,  -3.224209795976453186e-01,
        5.199051708814241834e-01,  -7.090101573704297167e-01, 8.518430043940635743e-01,
        -9.375858174680130608e-01, 9.786598472902545698e-01,  -9.944759711140600533e-01,
        9.996589275106304573e-01,  -1.001776576968776977e+00, 1.004046595433120137e+00,
        -1.008346248356397856e+00, 1.017342849463890531e+00,  -1.036927745116643207e+00,
        1.082323233419692388e+00,  -1.202056903155082956e+00, 1.644934066848198650e+00,
        -5.772156649015328655e-01};
    return horner(y, c);
  }
}

// log z - digamma(z) for z >= 1, from 1 / z.
template <class V>
FASTVI_HD V log_less_digamma(V inverse) {
  using S = scalar_t<V>;
  return inverse * multiply_add<false>(inverse, digamma_rest(inverse), broadcast<V>(S(0.5)));
}

FASTVI_ISA_END
}  // namespace fastvi
