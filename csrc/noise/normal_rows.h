// Noise for runs of rows, on the CPU: every lane of every vector does useful work, however few
// features a row has, because lanes run over (row, block of four features) without gaps.
#pragma once

#include "noise/logistic.h"

namespace fastvi {
FASTVI_ISA_BEGIN

struct NoiseKey {
  uint64_t seed, stream;
};

// What two words become: here two standard logistic numbers.
struct LogisticNoise {
  template <class V, class U>
  static FASTVI_HD void make(U a, U b, V* first, V* second) {
    *first = logistic<V>(a);
    *second = logistic<V>(b);
  }
};

// Makes the noise of up to max_rows rows of `blocks` blocks at a time: runs of `adjacent` rows,
// whose beginnings lie `step` apart in the samples. Which row and block a lane works on does not
// depend on the first row, so it is worked out once.
template <class S, class Noise>
class NoiseRows {
 public:
  static constexpr int kLanes = Traits<f32v>::lanes;
  static constexpr int kHalf = kLanes / 2;
  static constexpr int64_t kMaxBlocks = 1024 + 2 * kLanes;
  // Room that a buffer needs beyond rows * 4 * blocks numbers: results come a full vector at a
  // time.
  static constexpr int64_t kSlack = 4 * kLanes;

  NoiseRows(NoiseKey key, SampleRows samples, int64_t max_rows, int64_t blocks, int64_t adjacent,
            int64_t step)
      : key_(key), samples_(samples), blocks_(blocks), adjacent_(adjacent), step_(step) {
    for (int round = 0; round < 10; ++round) {
      round_key_[round][0] = u64v{} + philox_key_word(static_cast<uint32_t>(key.seed), 0, round);
      round_key_[round][1] =
          u64v{} + philox_key_word(static_cast<uint32_t>(key.seed >> 32), 1, round);
    }
    const int64_t total = ceil_div(max_rows * blocks, 2 * kLanes) * 2 * kLanes;
    // Rows with numbers of their own are looked up by their order.
    if (samples.index != nullptr) step = adjacent;
    int64_t run = 0, in_run = 0, block = 0;
    uint64_t rows_in_order[kLanes], blocks_in_order[kLanes];
    for (int64_t i = 0; i < total; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        rows_in_order[j] = static_cast<uint64_t>(run * step + in_run);
        blocks_in_order[j] = static_cast<uint64_t>(block);
        if (++block == blocks) {
          block = 0;
          if (++in_run == adjacent) {
            in_run = 0;
            ++run;
          }
        }
      }
      for (int j = 0; j < kHalf; ++j) {
        row_[i + j] = rows_in_order[place(2 * j)];
        row_[i + kHalf + j] = rows_in_order[place(2 * j + 1)];
        block_[i + j] = blocks_in_order[place(2 * j)];
        block_[i + kHalf + j] = blocks_in_order[place(2 * j + 1)];
      }
    }
  }

  int64_t blocks() const { return blocks_; }

  // Writes [rows, 4 * blocks] numbers of the rows of samples from `first` on, whose datum is `b`.
  void make(int64_t first, int64_t b, uint64_t block_begin, int64_t rows, S* eps) const {
    uint64_t numbers[kMaxBlocks];
    const bool numbered = samples_.index != nullptr;
    if (numbered) number(first, b, rows, numbers);
    const Place at{numbered ? 0 : samples_.of(first, b), block_begin, numbered ? numbers : nullptr};
    const int64_t total = rows * blocks_;
    // Two vectors at a time: their rounds are independent and fill each other's latency.
    int64_t i = 0;
    for (; i + kLanes < total; i += 2 * kLanes) step<2>(at, i, eps + 4 * i);
    if (i < total) step<1>(at, i, eps + 4 * i);
  }

 private:
  struct Place {
    uint64_t first, block_begin;
    const uint64_t* numbers;  // of the rows in their order, where they have some
  };

  // The rows of noise in the order of `make`; those that fill the last vectors are of no use.
  void number(int64_t first, int64_t b, int64_t rows, uint64_t* numbers) const {
    int64_t run = first, in_run = 0, datum = b;
    for (int64_t i = 0; i < rows; ++i) {
      numbers[i] = samples_.of(run + in_run, datum);
      if (++datum == samples_.batch) datum = 0;
      if (++in_run == adjacent_) {
        in_run = 0;
        run += step_;
        datum = b;
      }
    }
    for (int64_t i = rows; i < rows + 2 * kLanes; ++i) numbers[i] = 0;
  }

  template <int vectors>
  FASTVI_HD void step(const Place& at, int64_t i, S* eps) const {
    // Even lanes' blocks in one half of a vector, odd lanes' in the other: as many 64-bit lanes
    // each.
    u64v c[2 * vectors][4];
    FASTVI_UNROLL
    for (int h = 0; h < 2 * vectors; ++h) {
      u64v row, block;
      __builtin_memcpy(&row, row_ + i + h * kHalf, sizeof(row));
      __builtin_memcpy(&block, block_ + i + h * kHalf, sizeof(block));
      if (at.numbers != nullptr) {
        uint64_t of_lane[kHalf];
        for (int j = 0; j < kHalf; ++j) of_lane[j] = at.numbers[row_[i + h * kHalf + j]];
        __builtin_memcpy(&row, of_lane, sizeof(row));
      } else {
        row = row + at.first;
      }
      c[h][0] = block + at.block_begin;
      c[h][1] = u64v{} + key_.stream;
      c[h][2] = row;
      c[h][3] = row >> 32;
    }
    FASTVI_UNROLL
    for (int round = 0; round < 10; ++round) {
      FASTVI_UNROLL
      for (int h = 0; h < 2 * vectors; ++h)
        philox_round(c[h], round_key_[round][0], round_key_[round][1]);
    }
    FASTVI_UNROLL
    for (int v = 0; v < vectors; ++v) write(c[2 * v], c[2 * v + 1], eps + 4 * kLanes * v);
  }

  // The block, among kLanes in order, that lane i works on: so chosen that the four numbers of a
  // block come together by interleaving within quarters of a vector.
  static constexpr int place(int lane) { return lane % 4 * (kLanes / 4) + lane / 4; }

  static FASTVI_HD void write(const u64v (&even)[4], const u64v (&odd)[4], float* eps) {
    f32v n[4];
    u32v w[4];
    FASTVI_UNROLL
    for (int j = 0; j < 4; ++j) w[j] = (u32v)((even[j] & 0xffffffffu) | (odd[j] << 32));
    Noise::template make<f32v>(w[0], w[1], &n[0], &n[1]);
    Noise::template make<f32v>(w[2], w[3], &n[2], &n[3]);
    const f32v low01 = interleave_low(n[0], n[1]), low23 = interleave_low(n[2], n[3]);
    const f32v high01 = interleave_high(n[0], n[1]), high23 = interleave_high(n[2], n[3]);
    store(eps, (f32v)interleave_low((f64v)low01, (f64v)low23));
    store(eps + kLanes, (f32v)interleave_high((f64v)low01, (f64v)low23));
    store(eps + 2 * kLanes, (f32v)interleave_low((f64v)high01, (f64v)high23));
    store(eps + 3 * kLanes, (f32v)interleave_high((f64v)high01, (f64v)high23));
  }

  static FASTVI_HD void write(const u64v (&even)[4], const u64v (&odd)[4], double* eps) {
    FASTVI_UNROLL
    for (int h = 0; h < 2; ++h) {
      u64v w[4];
      f64v n[4];
      FASTVI_UNROLL
      for (int j = 0; j < 4; ++j) w[j] = (h == 0 ? even[j] : odd[j]) & 0xffffffffu;
      Noise::template make<f64v>(w[0], w[1], &n[0], &n[1]);
      Noise::template make<f64v>(w[2], w[3], &n[2], &n[3]);
      for (int j = 0; j < kHalf; ++j) {
        for (int q = 0; q < 4; ++q) eps[place(2 * j + h) * 4 + q] = n[q][j];
      }
    }
  }

  NoiseKey key_;
  SampleRows samples_;
  int64_t blocks_, adjacent_, step_;
  u64v round_key_[10][2];
  uint64_t row_[kMaxBlocks];
  uint64_t block_[kMaxBlocks];
};

template <class S>
using LogisticRows = NoiseRows<S, LogisticNoise>;

FASTVI_ISA_END
}  // namespace fastvi
