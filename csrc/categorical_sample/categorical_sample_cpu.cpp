#include "categorical_sample/categorical_sample.h"

#include "noise/normal_rows.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Two words as they are, the bits of one number.
struct WordPairs {
  template <class V, class U>
  static FASTVI_HD void make(U a, U b, V* first, V* second) {
    *first = *second = bit_cast<V>(a << 32 | b);
  }
};

template <class T>
struct CategoricalSampleCpu {
  using V = vec_t<T>;
  using S = acc_t<T>;
  static constexpr int lanes = Traits<V>::lanes;
  // Rows whose words are made at a time; they stay in the first-level cache.
  static constexpr int64_t kAtOnce = 512;

  const CategoricalSampleParams& p;

  FASTVI_HD const T* logits(int64_t r) const {
    return static_cast<const T*>(p.logits) + r * p.classes;
  }
  FASTVI_HD S* normaliser(int64_t r) const { return static_cast<S*>(p.normaliser) + 3 * r; }

  // Calls use(c, n, logits) for every vector of a row; lanes beyond the last class are impossible.
  template <class Use>
  FASTVI_HD void each(const T* from, Use use) const {
    int64_t c = 0;
    for (; c + lanes <= p.classes; c += lanes) use(c, lanes, load<V>(from + c));
    if (c < p.classes) {
      const int n = static_cast<int>(p.classes - c);
      use(c, n, load_partial<V>(from + c, n, S(-kInfinity)));
    }
  }

  void prepare(int64_t r) const {
    const T* from = logits(r);
    S* const to = normaliser(r);
    V largest = broadcast<V>(LogSumExp<S>::lowest()), sum = broadcast<V>(0);
    each(from, [&](int64_t, int, V x) { largest = max_number(largest, x); });
    to[0] = LogSumExp<S>::lowest();
    for (int i = 0; i < lanes; ++i) to[0] = max_number(to[0], S(largest[i]));
    const V max = broadcast<V>(to[0]);
    if (p.up_to == nullptr) {
      each(from, [&](int64_t, int, V x) { sum = sum + exp_nonpositive(x - max); });
    } else {
      const S whole = whole_weight<S>(p.classes);
      int64_t* up_to = p.up_to + r * p.classes;
      int64_t weight = 0;
      each(from, [&](int64_t c, int n, V x) {
        const V share = class_share(x - max);
        sum = sum + share;
        S of_lane[lanes];
        store(of_lane, share);
        for (int i = 0; i < n; ++i) up_to[c + i] = weight += class_weight(of_lane[i], whole);
      });
    }
    to[1] = sum_lanes(sum);
    to[2] = log(to[1]);
  }

  void forward(int64_t begin, int64_t end) const {
    const NoiseKey key{static_cast<uint64_t>(p.key[0]),
                       static_cast<uint64_t>(p.key[1]) & 0xffffffffu};
    using Words = NoiseRows<double, WordPairs>;
    alignas(64) double words[4 * kAtOnce + Words::kSlack];
    const int64_t at_once = min_i64(end - begin, kAtOnce);
    const Words rows(key, p.samples, at_once, 1, at_once, 0);
    int64_t own = begin % p.logits_rows;
    for (int64_t first = begin; first < end; first += at_once) {
      const int64_t count = min_i64(at_once, end - first);
      rows.make(first, first % p.samples.batch, 0, count, words);
      for (int64_t i = 0; i < count; ++i) {
        uint64_t u;
        __builtin_memcpy(&u, words + 4 * i, sizeof(u));
        const int64_t* up_to = p.up_to + own * p.classes;
        const int64_t x = class_at(up_to, p.classes, part_of(u, up_to[p.classes - 1]));
        p.value[first + i] = x;
        static_cast<S*>(p.log_prob)[first + i] =
            class_log_prob<S>(to_acc(logits(own)[x]), normaliser(own));
        if (++own == p.logits_rows) own = 0;
      }
    }
  }

  // d l_c = sum_k g_k (1[c = x_k] - softmax_c): what reaches each class, then the share of all.
  void backward(int64_t r) const {
    constexpr int64_t kClasses = 1024;  // at a time
    double of_class[kClasses];
    const S* const total = normaliser(r);
    const S* grads = static_cast<const S*>(p.grad_log_prob);
    double all = 0;
    for (int64_t row = r; row < p.rows; row += p.logits_rows)
      all += static_cast<double>(grads[row]);
    const V max = broadcast<V>(total[0]);
    for (int64_t from = 0; from < p.classes; from += kClasses) {
      const int64_t count = min_i64(kClasses, p.classes - from);
      __builtin_memset(of_class, 0, count * sizeof(double));
      for (int64_t row = r; row < p.rows; row += p.logits_rows) {
        const auto c = static_cast<uint64_t>(p.drawn[row] - from);
        if (c < static_cast<uint64_t>(count)) of_class[c] += static_cast<double>(grads[row]);
      }
      const T* l = logits(r) + from;
      T* to = static_cast<T*>(p.grad_logits) + r * p.classes + from;
      for (int64_t c = 0; c < count; c += lanes) {
        const int n = static_cast<int>(min_i64(lanes, count - c));
        S share[lanes];
        store(share, exp_nonpositive(load_partial<V>(l + c, n, S(-kInfinity)) - max));
        for (int i = 0; i < n; ++i) {
          const double part = static_cast<double>(share[i]) / static_cast<double>(total[1]);
          to[c + i] = from_acc<T>(static_cast<S>(of_class[c + i] - all * part));
        }
      }
    }
  }
};

FASTVI_ISA_END

void categorical_sample_prepare::FASTVI_ISA(const CategoricalSampleParams& p, int64_t begin,
                                            int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    for (int64_t r = begin; r < end; ++r) CategoricalSampleCpu<T>{p}.prepare(r);
  })
}
void categorical_sample::FASTVI_ISA(const CategoricalSampleParams& p, int64_t begin, int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, CategoricalSampleCpu<T>{p}.forward(begin, end))
}
void categorical_sample_backward::FASTVI_ISA(const CategoricalSampleParams& p, int64_t begin,
                                             int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    for (int64_t r = begin; r < end; ++r) CategoricalSampleCpu<T>{p}.backward(r);
  })
}

}  // namespace fastvi
