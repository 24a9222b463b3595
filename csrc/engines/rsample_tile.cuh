// The tiles of the sampler's forward kernel: a block makes adjacent rows, a quad per thread in each
// pass.
#pragma once

#include "engines/rsample_quad.cuh"

namespace fastvi {
namespace {

// Quads of a tile are numbered through all of its rows, so that no lane is idle however short a row
// is. Their place in memory grows with their number.
constexpr int kMaxPasses = static_cast<int>(kRsampleSegment / kQuad) / kThreads;
static_assert(kMaxPasses * kThreads * kQuad == kRsampleSegment && kThreads == 256);

constexpr int64_t kManyTiles = FASTVI_MAX_GRID < 512 ? FASTVI_MAX_GRID : 512;

// How a call is cut in tiles: worked out once, on the host.
struct TileShape {
  int64_t tiles;
  int rows, quads;         // rows of a tile, quads of a row (of a whole segment)
  unsigned inverse;        // of quads, in units of 2^-20
  int lanes_log2;          // lanes that add up one row: 2^lanes_log2 of them
  int few;                 // the batch, where data come again within a tile
  unsigned batch_inverse;  // of the batch, in units of 2^-31

  explicit TileShape(const RsampleParams& p) : rows(0) {
    // A row without features still has its densities: one empty quad.
    quads = static_cast<int>(max_i64(1, ceil_div(min_i64(p.features, kRsampleSegment), kQuad)));
    inverse = (1u << 20) / static_cast<unsigned>(quads) + 1;
    // Each pass more spreads the cost of a tile over more samples, as long as tiles are left for
    // every multiprocessor and rows do not fill the threads worse.
    const int64_t all_quads = p.num_samples * p.batch * p.num_segments * quads;
    int best = 0;
    for (int passes = 1; passes <= kMaxPasses; ++passes) {
      const int fitting = row_of(passes * kThreads);
      const int busy = fitting * quads * (12 / passes);
      const bool enough = all_quads >= kManyTiles * kThreads * passes;
      if (best == 0 || (enough && busy * 16 >= best * 15)) {
        rows = fitting;
        best = busy;
      }
    }
    const int64_t all_rows = p.num_samples * p.batch;
    tiles = p.num_segments > 1 ? all_rows * p.num_segments : ceil_div(all_rows, rows);
    lanes_log2 = rows == 1 ? 8 : 5;
    while (rows > 1 && lanes_log2 > 0 && rows << lanes_log2 > kThreads) --lanes_log2;
    few = static_cast<int>(min_i64(p.batch, kMaxPasses * kThreads));
    batch_inverse = static_cast<unsigned>(ceil_div(int64_t{1} << 31, max_i64(1, p.batch)));
  }
  // u / quads, exact: neither of the two is above 1024.
  FASTVI_HD int row_of(int u) const {
    return static_cast<int>(static_cast<unsigned>(u) * inverse >> 20);
  }
  // again / batch, exact for what is below 1024.
  FASTVI_HD int rounds_of(int again) const {
    return static_cast<int>(
        static_cast<uint64_t>(static_cast<unsigned>(again) * 2u) * batch_inverse >> 32);
  }
};

template <class T>
struct TilePlace {
  int64_t row, segment, begin;  // first row; first feature of the segment
  int64_t first_b;              // the datum of the first row
  unsigned first_quad;          // of the segment, in its row
  int width, quads, rows;       // features and quads of a row here, rows here
  int wrap;                     // the row here at which the data begin anew, if there is one

  __device__ __forceinline__ TilePlace(const RsampleParams& p, const TileShape& shape,
                                       int64_t tile) {
    row = tile * shape.rows, segment = begin = 0;
    width = static_cast<int>(p.features), quads = shape.quads;
    if (p.num_segments > 1) {
      row = tile / p.num_segments;
      segment = tile - row * p.num_segments;
      begin = segment * kRsampleSegment;
      width = static_cast<int>(min_i64(kRsampleSegment, p.features - begin));
      quads = (width + kQuad - 1) / kQuad;
    }
    first_quad = static_cast<unsigned>(segment) * static_cast<unsigned>(kRsampleSegment / kQuad);
    rows = static_cast<int>(min_i64(shape.rows, p.num_samples * p.batch - row));
    first_b = row % p.batch;
    wrap = static_cast<int>(min_i64(p.batch - first_b, rows));
  }
  // The datum of a row of the tile: first_b + back, or back alone where the data have begun anew.
  __device__ __forceinline__ int back(const TileShape& shape, int local) const {
    const int again = local - wrap;
    return again < 0 ? local : again - shape.rounds_of(again) * shape.few;
  }
  __device__ __forceinline__ int64_t datum(const TileShape& shape, int local) const {
    return (local < wrap ? first_b : 0) + back(shape, local);
  }
  // Where quad u of a row starts, in elements from the tile's first. The last segment of a long row
  // is alone in its tile: then the row is 0, whatever its width.
  __device__ __forceinline__ int offset(const TileShape& shape, int u) const {
    const int local = shape.row_of(u);
    return local * width + (u - local * quads) * kQuad;
  }
};

// Copies count elements, staged at `shift` so that both sides are aligned alike, to global memory:
// whole words, one or two to a thread, and by the first threads what is before and behind them.
template <class T>
__device__ __forceinline__ void copy_out(const T* staged, int shift, int count, T* to) {
  constexpr int n = kPack<T>;
  const int me = static_cast<int>(threadIdx.x);
  const int first = shift > 0 ? n : 0, end = shift + count;
  FASTVI_UNROLL
  for (int turn = 0; turn < (n < kQuad ? kQuad / n : 1); ++turn) {
    const int i = first + (turn * kThreads + me) * n;
    if (i + n <= end) {
      *reinterpret_cast<uint4*>(to + (i - shift)) = *reinterpret_cast<const uint4*>(staged + i);
    }
  }
  if (me < n) {
    if (me >= shift && me < first && me < end) to[me - shift] = staged[me];
    const int last = (end & -n) + me;
    if (last >= first && last < end) to[last - shift] = staged[last];
  }
}

}  // namespace
}  // namespace fastvi
