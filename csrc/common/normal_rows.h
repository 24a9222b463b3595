// Standard normals for whole rows, on the CPU: every lane of every vector does useful work, however
// few features a row has, because lanes run over (row, block of four features) without a gap.
#pragma once

#include "common/normal.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Four vectors of a block's words become four vectors of its normals, in the lanes of V.
FASTVI_HD void normals_of_words(const u32v (&w)[4], f32v (&eps)[4]) {
  box_muller<f32v>((i32v)w[0], (i32v)w[1], &eps[0], &eps[1]);
  box_muller<f32v>((i32v)w[2], (i32v)w[3], &eps[2], &eps[3]);
}

// Where the blocks of a run of rows lie: the row of block 0, the rows' distance in the counter (the
// rows of one datum lie B apart), and blocks [block_begin, block_begin + blocks) of each row.
struct BlockGrid {
  uint64_t seed, stream, first_row, row_step, block_begin;
  int64_t blocks;
};

// Writes the normals of `count` rows to eps, [count, 4 * blocks]. `eps` has room for a full vector
// of blocks beyond its end.
template <class S>
inline void normal_rows(const BlockGrid& g, int64_t count, S* eps) {
  constexpr int lanes = Traits<f32v>::lanes;
  const int64_t total = count * g.blocks;
  uint64_t row = g.first_row;
  int64_t block = 0;
  // One vector's worth of counters, refilled lane by lane: rows can be short.
  uint64_t block_lane[lanes], row_lane[lanes];
  for (int64_t i = 0; i < total; i += lanes) {
    if (block + lanes <= g.blocks) {
      for (int j = 0; j < lanes; ++j) {
        block_lane[j] = g.block_begin + static_cast<uint64_t>(block + j);
        row_lane[j] = row;
      }
      block += lanes;
      if (block == g.blocks) {
        block = 0;
        row += g.row_step;
      }
    } else {
      for (int j = 0; j < lanes; ++j) {
        block_lane[j] = g.block_begin + static_cast<uint64_t>(block);
        row_lane[j] = row;
        if (++block == g.blocks) {
          block = 0;
          row += g.row_step;
        }
      }
    }
    // Even blocks in one half, odd ones in the other: a half has as many 64-bit lanes.
    u64v c[2][4];
    constexpr int half = lanes / 2;
    u64v lo_block, hi_block, lo_row, hi_row;
    __builtin_memcpy(&lo_block, block_lane, sizeof(u64v));
    __builtin_memcpy(&hi_block, block_lane + half, sizeof(u64v));
    __builtin_memcpy(&lo_row, row_lane, sizeof(u64v));
    __builtin_memcpy(&hi_row, row_lane + half, sizeof(u64v));
    const u64v stream = u64v{} + (g.stream & 0xffffffffu);
    c[0][0] = lo_block;
    c[0][1] = stream;
    c[0][2] = lo_row;
    c[0][3] = lo_row >> 32;
    c[1][0] = hi_block;
    c[1][1] = stream;
    c[1][2] = hi_row;
    c[1][3] = hi_row >> 32;
    philox(c[0], g.seed);
    philox(c[1], g.seed);
    if constexpr (sizeof(S) == 4) {
      // Block i of the low half in even lanes, of the high half in odd ones.
      u32v w[4];
      f32v n[4];
      FASTVI_UNROLL
      for (int j = 0; j < 4; ++j) w[j] = (u32v)((c[0][j] & 0xffffffffu) | (c[1][j] << 32));
      normals_of_words(w, n);
      // [4][lanes] -> [lanes][4].
      float out[4][lanes];
      __builtin_memcpy(out, n, sizeof(out));
      for (int j = 0; j < half; ++j) {
        for (int q = 0; q < 4; ++q) {
          eps[(i + j) * 4 + q] = out[q][2 * j];
          eps[(i + half + j) * 4 + q] = out[q][2 * j + 1];
        }
      }
    } else {
      FASTVI_UNROLL
      for (int h = 0; h < 2; ++h) {
        // A word in a signed 64-bit lane, extended by its sign.
        i64v w[4];
        f64v n[4];
        FASTVI_UNROLL
        for (int j = 0; j < 4; ++j) w[j] = (i64v)(c[h][j] << 32) >> 32;
        box_muller<f64v>(w[0], w[1], &n[0], &n[1]);
        box_muller<f64v>(w[2], w[3], &n[2], &n[3]);
        for (int j = 0; j < half; ++j) {
          for (int q = 0; q < 4; ++q) eps[(i + h * half + j) * 4 + q] = n[q][j];
        }
      }
    }
  }
}

FASTVI_ISA_END
}  // namespace fastvi
