// A group of adjacent lanes for a segment of a row, a block where it is long; a lane takes the four
// features of a Philox block at a time.
#include "bernoulli_sample/bernoulli_sample.h"
#include "engines/reduce.cuh"

namespace fastvi {
namespace {

constexpr int kQuad = 4;

FASTVI_HD int sample_lanes(const BernoulliSampleParams& p) {
  return group_lanes(ceil_div(min_i64(p.features, kSampleSegment), kQuad), 1, 8 * kWarp);
}

template <class T, bool elementwise>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    sample(const __grid_constant__ BernoulliSampleParams p) {
  using S = acc_t<T>;
  const int lanes = sample_lanes(p);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int groups = kThreads / lanes;
  const int64_t tasks = p.rows * p.num_segments;
  const uint64_t seed = static_cast<uint64_t>(p.key[0]), stream = static_cast<uint64_t>(p.key[1]);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < tasks;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t task = first + static_cast<int>(threadIdx.x) / lanes;
    const int64_t row = task / p.num_segments;
    const int64_t begin = task % p.num_segments * kSampleSegment;
    const int64_t end = task < tasks ? min_i64(begin + kSampleSegment, p.features) : begin;
    const uint64_t noise_row = task < tasks ? p.samples.of(row) : 0;
    const T* logits = static_cast<const T*>(p.logits) + row % p.logits_rows * p.features;
    T* value = static_cast<T*>(p.value) + row * p.features;
    S sum = 0;
    for (int64_t d = begin + lane * kQuad; d < end; d += lanes * kQuad) {
      S noise[kQuad];
      logistic_block(seed, stream, noise_row, static_cast<uint64_t>(d / kQuad), noise);
      FASTVI_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        if (d + j < end) {
          const S l = to_acc(logits[d + j]);
          const S x[2] = {l > noise[j] ? S(1) : S(0), l};
          value[d + j] = from_acc<T>(x[0]);
          const S log_prob = BernoulliFamily::value(x);
          if constexpr (elementwise) {
            static_cast<S*>(p.log_prob)[row * p.features + d + j] = log_prob;
          } else {
            sum += log_prob;
          }
        }
      }
    }
    if constexpr (!elementwise) {
      sum = sum_group(sum, lanes);
      if (lane == 0 && task < tasks) static_cast<S*>(p.log_prob)[task] = sum;
    }
  }
}

}  // namespace

const char* bernoulli_sample::cuda(const BernoulliSampleParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.rows * p.num_segments, kThreads / sample_lanes(p));
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    return launch_blocks(p.elementwise ? sample<T, true> : sample<T, false>, blocks, stream, p);
  })
  return "bernoulli_sample: unknown element type";
}

}  // namespace fastvi
