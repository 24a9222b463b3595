// The tiles of the sampler's forward kernel: a block makes adjacent rows, a quad per thread in each
// pass.
#pragma once

#include "engines/reduce.cuh"
#include "engines/rsample.h"
#include "simd/vector_load.cuh"

namespace fastvi {
namespace {

// A thread works on a quad: the four features of one Philox block of one row.
constexpr int kQuad = 4;

// Quads of a tile are numbered through all of its rows, so that no lane is idle however short a row
// is. Their place in memory grows with their number.
constexpr int kMaxPasses = static_cast<int>(kRsampleSegment / kQuad) / kThreads;
static_assert(kMaxPasses * kThreads * kQuad == kRsampleSegment && kThreads == 256);

constexpr int64_t kManyTiles = FASTVI_MAX_GRID < 512 ? FASTVI_MAX_GRID : 512;

struct TileShape {
  int rows, quads;   // rows of a tile, quads of a row (of a whole segment)
  unsigned inverse;  // of quads, in units of 2^-20

  explicit __host__ __device__ TileShape(const RsampleParams& p) : rows(0) {
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
  }
  // u / quads, exact: neither of the two is above 1024.
  FASTVI_HD int row_of(int u) const {
    return static_cast<int>(static_cast<unsigned>(u) * inverse >> 20);
  }
  FASTVI_HD int64_t tiles(const RsampleParams& p) const {
    const int64_t all_rows = p.num_samples * p.batch;
    return p.num_segments > 1 ? all_rows * p.num_segments : ceil_div(all_rows, rows);
  }
  // Lanes that add up one row: 2^lanes_log2() of them.
  FASTVI_HD int lanes_log2() const {
    if (rows == 1) return 8;
    int log2 = 5;
    while (log2 > 0 && rows << log2 > kThreads) --log2;
    return log2;
  }
};

template <class T>
struct TilePlace {
  int64_t row, segment, begin;  // first row; first feature of the segment
  int64_t first_b, batch;       // the datum of the first row, of how many
  int width, quads, rows;       // features and quads of a row here, rows here

  __device__ __forceinline__ TilePlace(const RsampleParams& p, const TileShape& shape,
                                       int64_t tile) {
    row = p.num_segments > 1 ? tile / p.num_segments : tile * shape.rows;
    segment = p.num_segments > 1 ? tile % p.num_segments : 0;
    begin = segment * kRsampleSegment;
    width = static_cast<int>(min_i64(kRsampleSegment, p.features - begin));
    quads = width > 0 ? (width + kQuad - 1) / kQuad : 1;
    rows = static_cast<int>(min_i64(shape.rows, p.num_samples * p.batch - row));
    first_b = row % p.batch;
    batch = p.batch;
  }
  // The datum of a row of the tile.
  __device__ __forceinline__ int64_t datum(int local) const {
    const int64_t b = first_b + local;
    return b < batch ? b : b % batch;
  }
  // Where quad u of a row starts, in elements from the tile's first. The last segment of a long row
  // is alone in its tile: then the row is 0, whatever its width.
  __device__ __forceinline__ int offset(const TileShape& shape, int u) const {
    const int local = shape.row_of(u);
    return local * width + (u - local * quads) * kQuad;
  }
};

// Copies count elements, staged at `shift` so that both sides are aligned alike, to global memory.
template <class T>
__device__ __forceinline__ void copy_out(const T* staged, int shift, int count, T* to) {
  constexpr int n = kPack<T>;
  const int end = shift + count;
  for (int i = static_cast<int>(threadIdx.x) * n; i < end; i += kThreads * n) {
    if (i >= shift && i + n <= end) {
      *reinterpret_cast<uint4*>(to + (i - shift)) = *reinterpret_cast<const uint4*>(staged + i);
    } else {
      for (int j = i; j < i + n; ++j) {
        if (j >= shift && j < end) to[j - shift] = staged[j];
      }
    }
  }
}

}  // namespace
}  // namespace fastvi
