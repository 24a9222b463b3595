// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and what
// fastvi counts with it.
//
// A key is (seed, stream). The counter of the four numbers of features 4j .. 4j+3 in a row is
//   (j, low 32 bits of stream, low 32 bits of row, high 32 bits of row),
//   row = (sample_offset + k) * B + b,
// so the noise of sample k, datum b, feature d depends on the key and on its place, and on nothing
// else: not on chunks, threads, processes, grids or devices. Samples may be given by their numbers
// k, other ones for each datum.
#pragma once

#include "simd/macros.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Words one by one: a product of two has two words.
struct WordProduct {
  uint32_t low, high;
};
FASTVI_HD WordProduct mul_low32(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // One instruction. Left to the compiler, the rounds become products of 64-bit numbers.
  WordProduct p;
  asm("{ .reg .u64 p; mul.wide.u32 p, %2, %3; mov.b64 {%0, %1}, p; }"
      : "=r"(p.low), "=r"(p.high)
      : "r"(a), "r"(b));
  return p;
#else
  const uint64_t p = static_cast<uint64_t>(a) * b;
  return {static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32)};
#endif
}
FASTVI_HD uint32_t xor3(uint32_t a, uint32_t b, uint32_t c) { return a ^ b ^ c; }
FASTVI_HD uint32_t low_word(WordProduct p) { return p.low; }
FASTVI_HD uint32_t high_word(WordProduct p) { return p.high; }
// A vector of 64-bit lanes: a word is the low half of its lane, and what lands in the high half is
// never read. That is why a round is six instructions.
template <class W>
FASTVI_HD W low_word(W product) {
  return product;
}
template <class W>
FASTVI_HD W high_word(W product) {
  return product >> 32;
}

// One round, in place. W is uint32_t or a vector of 64-bit lanes.
template <class W>
FASTVI_HD void philox_round(W (&c)[4], W key0, W key1) {
  const auto p0 = mul_low32(c[0], W{} + 0xD2511F53u);
  const auto p1 = mul_low32(c[2], W{} + 0xCD9E8D57u);
  c[0] = xor3(high_word(p1), c[1], key0);
  c[2] = xor3(high_word(p0), c[3], key1);
  c[1] = low_word(p1);
  c[3] = low_word(p0);
}

// What key word 0 or 1 has become at a round: a step of the golden ratio, or of sqrt(3) - 1.
FASTVI_HD uint32_t philox_key_word(uint32_t word, int which, int round) {
  return word + static_cast<uint32_t>(round) * (which == 0 ? 0x9E3779B9u : 0xBB67AE85u);
}

// Ten rounds, in place.
template <class W>
FASTVI_HD void philox(W (&c)[4], uint64_t seed) {
  FASTVI_UNROLL
  for (int round = 0; round < 10; ++round) {
    philox_round(c, W{} + philox_key_word(static_cast<uint32_t>(seed), 0, round),
                 W{} + philox_key_word(static_cast<uint32_t>(seed >> 32), 1, round));
  }
}

// The rows of noise of the samples of a call.
struct SampleRows {
  const int64_t* index;  // [K, B] the number of each sample; null where they are 0 .. K - 1
  int64_t offset, batch;

  // Of row k B + b of the samples; b is its datum.
  FASTVI_HD uint64_t of(int64_t row, int64_t b) const {
    const uint64_t first = static_cast<uint64_t>(offset), data = static_cast<uint64_t>(batch);
    if (index == nullptr) return first * data + static_cast<uint64_t>(row);
    return (first + static_cast<uint64_t>(index[row])) * data + static_cast<uint64_t>(b);
  }
  FASTVI_HD uint64_t of(int64_t row) const {
    return index == nullptr ? of(row, 0) : of(row, row % batch);
  }
};

// The four words of one block of features of one row.
FASTVI_HD void philox_words(uint64_t seed, uint64_t stream, uint64_t row, uint64_t block,
                            uint32_t (&words)[4]) {
  words[0] = static_cast<uint32_t>(block);
  words[1] = static_cast<uint32_t>(stream);
  words[2] = static_cast<uint32_t>(row);
  words[3] = static_cast<uint32_t>(row >> 32);
  philox(words, seed);
}

FASTVI_ISA_END
}  // namespace fastvi
