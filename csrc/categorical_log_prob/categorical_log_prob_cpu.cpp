#include "categorical_log_prob/categorical_log_prob.h"

namespace fastvi {
FASTVI_ISA_BEGIN

template <class T>
struct CategoricalCpu {
  using V = vec_t<T>;
  using S = acc_t<T>;
  static constexpr int lanes = Traits<V>::lanes;

  const CategoricalLogProbParams& p;

  // Calls use(c, logits) for every vector of a row; lanes beyond the last outcome are impossible.
  template <class Use>
  FASTVI_HD void each(const T* logits, Use use) const {
    int64_t c = 0;
    for (; c + lanes <= p.classes; c += lanes) use(c, load<V>(logits + c));
    if (c < p.classes)
      use(c, load_partial<V>(logits + c, static_cast<int>(p.classes - c), S(-kInfinity)));
  }

  // The maximum first: the row is in the cache when it is read again, and one subtraction is
  // cheaper than keeping a running sum in step with a running maximum.
  FASTVI_HD LogSumExp<S> log_sum_exp(const T* logits) const {
    V largest = broadcast<V>(LogSumExp<S>::lowest()), sum = broadcast<V>(0);
    // Sums of kShort vectors meet in float64: there may be a million outcomes.
    constexpr int64_t kShort = 64 * lanes;
    double total = 0;
    each(logits, [&](int64_t, V x) { largest = max_number(largest, x); });
    LogSumExp<S> result;
    for (int i = 0; i < lanes; ++i) result.max = max_number(result.max, S(largest[i]));
    const V max = broadcast<V>(result.max);
    each(logits, [&](int64_t c, V x) {
      sum = sum + exp_nonpositive(x - max);
      if (c % kShort == kShort - lanes) {
        total += static_cast<double>(sum_lanes(sum));
        sum = broadcast<V>(0);
      }
    });
    result.sum = static_cast<S>(total + static_cast<double>(sum_lanes(sum)));
    return result;
  }

  FASTVI_HD const T* row(int64_t r) const {
    return static_cast<const T*>(p.logits) + r % p.logits_period * p.classes;
  }
  FASTVI_HD int64_t outcome(int64_t r) const { return p.value[r % p.value_period]; }
  FASTVI_HD bool possible(int64_t x) const { return x >= 0 && x < p.classes; }

  void forward(int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r) {
      const T* logits = row(r);
      const int64_t x = outcome(r);
      S density = S(__builtin_nan(""));
      if (possible(x)) {
        const LogSumExp<S> total = log_sum_exp(logits);
        density = categorical_log_density<S>(to_acc(logits[x]), total.max, total.sum);
      }
      static_cast<S*>(p.out)[r] = density;
    }
  }

  template <class U>
  void backward(U* grads, int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r) {
      const T* logits = row(r);
      U* to = grads + r * p.classes;
      const int64_t x = outcome(r);
      const S grad = possible(x) ? static_cast<const S*>(p.grad_out)[r] : S(__builtin_nan(""));
      const LogSumExp<S> total = log_sum_exp(logits);
      const V max = broadcast<V>(total.max), scale = broadcast<V>(-grad / total.sum);
      each(logits, [&](int64_t c, V l) {
        const V g = exp_nonpositive(l - max) * scale;
        if (c + lanes <= p.classes) {
          store(to + c, g);
        } else {
          store_partial(to + c, g, static_cast<int>(p.classes - c));
        }
      });
      if (possible(x)) {
        // Not the rounded number plus the gradient: rounded once.
        const S share = exp_nonpositive(to_acc(logits[x]) - total.max) / total.sum;
        to[x] = from_acc<U>(grad * (S(1) - share));
      }
    }
  }
};

FASTVI_ISA_END

void categorical_log_prob::FASTVI_ISA(const CategoricalLogProbParams& p, int64_t begin,
                                      int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, CategoricalCpu<T>{p}.forward(begin, end))
}
void categorical_log_prob_backward::FASTVI_ISA(const CategoricalLogProbParams& p, int64_t begin,
                                               int64_t end) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    const CategoricalCpu<T> rows{p};
    if (p.grad_in_acc) {
      rows.backward(static_cast<acc_t<T>*>(p.grad_logits), begin, end);
    } else {
      rows.backward(static_cast<T*>(p.grad_logits), begin, end);
    }
  })
}

}  // namespace fastvi
