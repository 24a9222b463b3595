// categorical_sample: x = c with probability softmax(l)_c, with log p(x) in the same pass, and the
// gradient of the latter; the samples have none.
//
// The inverse of the cumulative probabilities, in whole numbers: a class weighs e^(l_c - max l) in
// units of 2^-s, cut off, and x is the first class up to which the weights are above U W / 2^64,
// where W is the sum of all of them and U the 64-bit number in the first two words of the Philox
// block of its place, see noise/philox.h. Sums of whole numbers do not depend on their order, so
// in float32 the same logits give the same classes on every machine.
#pragma once

#include "maths/log_sum_exp.h"
#include "noise/philox.h"

namespace fastvi {

struct CategoricalSampleParams {
  const void* logits;  // [logits_rows, C], dtype; row r of the samples has row r % logits_rows
  const int64_t* key;  // [2] seed, stream; where the data is
  int64_t rows, logits_rows, classes;  // K * B, B or K * B, C
  SampleRows samples;                  // of B data
  Dtype dtype;

  // What `prepare` makes once per row of logits.
  int64_t* up_to;    // [logits_rows, C] the sums of the weights; null where nothing is drawn
  void* normaliser;  // [logits_rows, 3] the largest logit, sum e^(l - largest), its logarithm

  int64_t* value;  // [K, B]
  void* log_prob;  // [K, B], accumulation type

  const void* grad_log_prob;  // [K, B], accumulation type
  const int64_t* drawn;       // [K, B]
  void* grad_logits;          // [logits_rows, C], dtype
};

FASTVI_DECLARE_KERNEL(categorical_sample_prepare, CategoricalSampleParams);  // tasks: logits_rows
FASTVI_DECLARE_KERNEL(categorical_sample, CategoricalSampleParams);          // tasks: K * B
FASTVI_DECLARE_KERNEL(categorical_sample_backward,
                      CategoricalSampleParams);  // tasks: logits_rows, on CUDA logits_rows * C

// What the weight 1 counts: as much as leaves the sum of C of them below 2^62.
template <class S>
FASTVI_HD S whole_weight(int64_t classes) {
  int64_t unit = int64_t{1} << 61;
  for (; classes > 1; classes = (classes + 1) / 2) unit /= 2;
  return static_cast<S>(unit);
}

FASTVI_ISA_BEGIN

// e^x for x <= 0, or NaN. Its float32 bits decide what a key draws: so they come from correctly
// rounded operations alone, and not from the exponential of maths/math.h, which may be improved.
template <class V>
FASTVI_HD V class_share(V x) {
  if constexpr (sizeof(scalar_t<V>) == 8) {
    return exp(x);
  } else {
    using C = ExpConstants<float>;
    constexpr float c[] = {1.38143206997e-3f,
                           8.36885106767e-3f,
                           4.16684010813e-2f,
                           1.66665195241e-1f,
                           4.99999933731e-1f,
                           1.0f,
                           1.0f};
    const V shifted = fma(x, broadcast<V>(1.44269504088896340736f), broadcast<V>(C::magic));
    const V n = shifted - broadcast<V>(C::magic);
    V r = fma(n, broadcast<V>(-C::log2_high), x);
    r = fma(n, broadcast<V>(-C::log2_low), r);
    V y = scale_by_power(horner<true>(r, c), n, bit_cast<int_t<V>>(shifted));
    y = select(x < broadcast<V>(C::lowest), broadcast<V>(0), y);
    return select(x == x, y, x);
  }
}

// From e^(l - max), which is at most 1, or NaN: that weighs nothing, and shows in the density.
template <class S>
FASTVI_HD int64_t class_weight(S share, S whole) {
  return share == share ? static_cast<int64_t>(share * whole) : 0;
}

// floor(u * weight / 2^64): below the weight, so that a class without weight is never drawn.
FASTVI_HD int64_t part_of(uint64_t u, int64_t weight) {
#if defined(__CUDA_ARCH__)
  return static_cast<int64_t>(__umul64hi(u, static_cast<uint64_t>(weight)));
#else
  return static_cast<int64_t>(static_cast<unsigned __int128>(u) * static_cast<uint64_t>(weight) >>
                              64);
#endif
}

// The first class up to which the weights are above `part`; the last where nothing weighs.
FASTVI_HD int64_t class_at(const int64_t* up_to, int64_t classes, int64_t part) {
  const int64_t* at = up_to;
  while (classes > 1) {
    const int64_t half = classes / 2;
    at += at[half - 1] <= part ? half : 0;
    classes -= half;
  }
  return at - up_to;
}

// The largest logit, the sum and its logarithm, as `prepare` leaves them.
template <class S>
FASTVI_HD S class_log_prob(S logit, const S* normaliser) {
  return (logit - normaliser[0]) - normaliser[2];
}

FASTVI_ISA_END
}  // namespace fastvi
