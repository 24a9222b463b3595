#include "bernoulli_sample/bernoulli_sample.h"

#include "noise/normal_rows.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Numbers of noise that are made at a time; they stay in the first-level cache.
constexpr int64_t kNoise = 2048;

template <class T>
struct BernoulliSampleCpu {
  using V = vec_t<T>;
  using S = acc_t<T>;
  static constexpr int lanes = Traits<V>::lanes;
  static constexpr int kFlush = 64;

  const BernoulliSampleParams& p;

  static FASTVI_HD V outcome(V logit, V noise) {
    return select(logit > noise, broadcast<V>(1), broadcast<V>(0));
  }

  // The features [begin, end) of a row.
  void row(const S* noise, int64_t r, int64_t s, int64_t begin, int64_t end) const {
    const T* logits = static_cast<const T*>(p.logits) + r % p.logits_rows * p.features;
    T* value = static_cast<T*>(p.value) + r * p.features;
    if (p.elementwise) {
      S* log_prob = static_cast<S*>(p.log_prob) + r * p.features;
      for (int64_t d = begin; d < end; d += lanes) {
        const int n = static_cast<int>(min_i64(lanes, end - d));
        const V l = load_partial<V>(logits + d, n);
        const V x[2] = {outcome(l, load_partial<V>(noise + d - begin, n)), l};
        store_partial(value + d, x[0], n);
        store_partial(log_prob + d, BernoulliFamily::value(x), n);
      }
      return;
    }
    typename BernoulliFamily::template Sum<V> sum;
    int64_t d = begin;
    for (int since = 0; d + lanes <= end; d += lanes) {
      const V l = load<V>(logits + d);
      const V x[2] = {outcome(l, load<V>(noise + d - begin)), l};
      store(value + d, x[0]);
      sum.add(x);
      if (++since == kFlush) {
        sum.flush();
        since = 0;
      }
    }
    sum.flush();
    S tail = 0;
    if (d < end) {
      const int n = static_cast<int>(end - d);
      const V l = load_partial<V>(logits + d, n);
      const V x[2] = {outcome(l, load_partial<V>(noise + d - begin, n)), l};
      store_partial(value + d, x[0], n);
      tail = sum_lanes(keep_first(BernoulliFamily::value(x), n));
    }
    static_cast<S*>(p.log_prob)[r * p.num_segments + s] = sum_lanes(sum.total) + tail;
  }

  void forward(int64_t begin, int64_t end) const {
    const NoiseKey key{static_cast<uint64_t>(p.key[0]),
                       static_cast<uint64_t>(p.key[1]) & 0xffffffffu};
    alignas(64) S noise[kSampleSegment + LogisticRows<S>::kSlack];
    if (p.num_segments == 1) {
      const int64_t blocks = max_i64(1, ceil_div(p.features, 4)), width = 4 * blocks;
      const int64_t at_once = min_i64(end - begin, max_i64(1, kNoise / width));
      const LogisticRows<S> rows(key, p.samples, at_once, blocks, at_once, 0);
      for (int64_t first = begin; first < end; first += at_once) {
        const int64_t count = min_i64(at_once, end - first);
        rows.make(first, first % p.samples.batch, 0, count, noise);
        for (int64_t i = 0; i < count; ++i) row(noise + i * width, first + i, 0, 0, p.features);
      }
      return;
    }
    const LogisticRows<S> rows(key, p.samples, 1, kSampleSegment / 4, 1, 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t r = task / p.num_segments, s = task % p.num_segments;
      // A short last segment makes a little more noise than it uses.
      rows.make(r, r % p.samples.batch, static_cast<uint64_t>(s * kSampleSegment / 4), 1, noise);
      row(noise, r, s, s * kSampleSegment, min_i64((s + 1) * kSampleSegment, p.features));
    }
  }
};

FASTVI_ISA_END

void bernoulli_sample::FASTVI_ISA(const BernoulliSampleParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, BernoulliSampleCpu<T>{p}.forward(begin, end))
}

}  // namespace fastvi
