// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and what
// fastvi counts with it.
//
// A key is (seed, stream). The counter of the four numbers of features 4j .. 4j+3 in a row is
//   (j, low 32 bits of stream, low 32 bits of row, high 32 bits of row),
//   row = (sample_offset + k) * B + b,
// so the noise of sample k, datum b, feature d depends on the key and on its place, and on nothing
// else: not on chunks, threads, processes, grids or devices.
#pragma once

#include "common/macros.h"

namespace fastvi {
FASTVI_ISA_BEGIN

FASTVI_HD uint64_t mul_low32(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) * static_cast<uint32_t>(b);
}
FASTVI_HD uint64_t xor3(uint64_t a, uint64_t b, uint64_t c) { return a ^ b ^ c; }

// Ten rounds, in place. W is uint64_t or a vector of them; a word is the low half of its lane, and
// what lands in the high half is never read: that is why a round is six instructions.
template <class W>
FASTVI_HD void philox(W (&c)[4], uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  FASTVI_UNROLL
  for (int round = 0; round < 10; ++round) {
    const W p0 = mul_low32(c[0], W{} + 0xD2511F53u);
    const W p1 = mul_low32(c[2], W{} + 0xCD9E8D57u);
    c[0] = xor3(p1 >> 32, c[1], W{} + key0);
    c[2] = xor3(p0 >> 32, c[3], W{} + key1);
    c[1] = p1;
    c[3] = p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The four words of one block of features of one row.
FASTVI_HD void philox_words(uint64_t seed, uint64_t stream, uint64_t row, uint64_t block,
                            uint32_t (&words)[4]) {
  uint64_t c[4] = {block, stream & 0xffffffffu, row & 0xffffffffu, row >> 32};
  philox(c, seed);
  FASTVI_UNROLL
  for (int i = 0; i < 4; ++i) words[i] = static_cast<uint32_t>(c[i]);
}

FASTVI_ISA_END
}  // namespace fastvi
