// A group of adjacent lanes for a row, a block where the row is long.
#include "categorical_log_prob/categorical_log_prob.h"
#include "engines/reduce.cuh"

namespace fastvi {
namespace {

template <class T>
struct CategoricalCuda {
  using S = acc_t<T>;

  const CategoricalLogProbParams& p;
  int lanes, lane;
  int64_t row, outcome, classes;  // no classes for a group beyond the last row
  const T* logits;

  static FASTVI_HD int lanes_of(const CategoricalLogProbParams& p) {
    return group_lanes(p.classes, 8, 64 * kWarp);
  }

  __device__ __forceinline__ explicit CategoricalCuda(const CategoricalLogProbParams& params)
      : p(params), lanes(lanes_of(params)) {
    lane = static_cast<int>(threadIdx.x) % lanes;
  }

  __device__ __forceinline__ void go_to(int64_t r) {
    row = r;
    classes = r < p.rows ? p.classes : 0;
    const int64_t safe = r < p.rows ? r : 0;
    logits = static_cast<const T*>(p.logits) + repeated(safe, p.logits_period) * p.classes;
    outcome = p.value[repeated(safe, p.value_period)];
  }
  static __device__ __forceinline__ int64_t repeated(int64_t r, int64_t period) {
    return r < period ? r : r % period;
  }
  __device__ __forceinline__ bool possible() const { return outcome >= 0 && outcome < p.classes; }

  // Every thread of a block takes part.
  __device__ __forceinline__ LogSumExp<S> log_sum_exp() const {
    LogSumExp<S> own;
    for (int64_t c = lane; c < classes; c += lanes) own.add(to_acc(logits[c]));
    return merge_group(own, lanes);
  }

  __device__ __forceinline__ void forward() const {
    const LogSumExp<S> total = log_sum_exp();
    if (lane != 0 || classes == 0) return;
    static_cast<S*>(p.out)[row] =
        possible() ? categorical_log_density<S>(to_acc(logits[outcome]), total.max, total.sum)
                   : S(__builtin_nan(""));
  }

  template <class U>
  __device__ __forceinline__ void backward(U* grads) const {
    const LogSumExp<S> total = log_sum_exp();
    if (classes == 0) return;
    const S grad = possible() ? static_cast<const S*>(p.grad_out)[row] : S(__builtin_nan(""));
    const S scale = S(1) / total.sum;
    U* to = grads + row * classes;
    for (int64_t c = lane; c < classes; c += lanes) {
      const S share = exp_nonpositive(to_acc(logits[c]) - total.max) * scale;
      to[c] = from_acc<U>(grad * ((c == outcome ? S(1) : S(0)) - share));
    }
  }
};

template <class T, bool backward>
__global__ void __launch_bounds__(kThreads)
    categorical_kernel(const __grid_constant__ CategoricalLogProbParams p) {
  CategoricalCuda<T> rows(p);
  const int groups = kThreads / rows.lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < p.rows;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    rows.go_to(first + static_cast<int>(threadIdx.x) / rows.lanes);
    if constexpr (!backward) {
      rows.forward();
    } else if (sizeof(T) == 2 && p.grad_in_acc) {
      rows.backward(static_cast<acc_t<T>*>(p.grad_logits));
    } else {
      rows.backward(static_cast<T*>(p.grad_logits));
    }
  }
}

template <bool backward>
const char* launch(const CategoricalLogProbParams& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, {
    const int groups = kThreads / CategoricalCuda<T>::lanes_of(p);
    return launch_blocks(categorical_kernel<T, backward>, ceil_div(p.rows, groups), stream, p);
  })
  return "unknown element type";
}

}  // namespace

const char* categorical_log_prob::cuda(const CategoricalLogProbParams& p, void* stream) {
  return launch<false>(p, stream);
}
const char* categorical_log_prob_backward::cuda(const CategoricalLogProbParams& p, void* stream) {
  return launch<true>(p, stream);
}

}  // namespace fastvi
