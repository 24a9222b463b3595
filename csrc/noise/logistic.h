// Standard logistic noise from one 32-bit word: log((1 - u) / u) with u = (word + 1/2) / 2^32; and
// Laplace noise: log 2u below the middle, -log 2(1 - u) above it.
//
// A Bernoulli variable with log-odds l is 1 where l is above such a number. Every operation is a
// correctly rounded one, so in float32 the same logits give the same outcomes on every machine.
#pragma once

#include "noise/normal.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <class V>
FASTVI_HD V logistic(typename Traits<V>::Uint word) {
  using S = scalar_t<V>;
  constexpr S unit = S(2.3283064365386962890625e-10);  // 2^-32
  const auto part = [](typename Traits<V>::Uint w) {
    return fma(word_to_float<V>(w), broadcast<V>(unit), broadcast<V>(unit / 2));
  };
  // 1 - u is that of the complement, so neither tail loses digits.
  return broadcast<V>(S(0.5)) *
         (minus_two_log(part(word)) - minus_two_log(part(word ^ 0xffffffffu)));
}

template <class V>
FASTVI_HD V laplace(typename Traits<V>::Uint word) {
  using S = scalar_t<V>;
  using U = typename Traits<V>::Uint;
  constexpr S unit = S(4.656612873077392578125e-10);  // 2^-31
  // Of a word above the middle the complement, whose tail loses no digits.
  const U above = (U{} - (word >> 31)) & 0xffffffffu;
  const V twice = fma(word_to_float<V>(word ^ above), broadcast<V>(unit), broadcast<V>(unit / 2));
  const V depth = broadcast<V>(S(0.5)) * minus_two_log(twice);
  constexpr int to_top = sizeof(S) * 8 - 32;
  const U sign = (~word & 0x80000000u) << to_top;
  return bit_cast<V>(bit_cast<U>(depth) ^ sign);
}

// The four numbers of one block of features of one row.
template <class S>
FASTVI_HD void logistic_block(uint64_t seed, uint64_t stream, uint64_t row, uint64_t block,
                              S (&noise)[4]) {
  uint32_t words[4];
  philox_words(seed, stream, row, block, words);
  FASTVI_UNROLL
  for (int i = 0; i < 4; ++i) noise[i] = logistic<S>(words[i]);
}

FASTVI_ISA_END
}  // namespace fastvi
