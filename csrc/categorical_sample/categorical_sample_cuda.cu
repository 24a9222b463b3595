// prepare: a group of adjacent lanes, at most a warp, for a row of logits. The samples: a thread
// each. The gradient: a group of lanes for a class, over the samples of its row.
#include "categorical_sample/categorical_sample.h"
#include "engines/reduce.cuh"

namespace fastvi {
namespace {

constexpr int64_t kNever = INT64_MAX;

FASTVI_HD int prepare_lanes(const CategoricalSampleParams& p) {
  return group_lanes(p.classes, 2, kNever);
}
FASTVI_HD int backward_lanes(const CategoricalSampleParams& p) {
  return group_lanes(p.rows / p.logits_rows, 8, 64 * kWarp);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    prepare(const __grid_constant__ CategoricalSampleParams p) {
  may_be_followed();
  using S = acc_t<T>;
  const int lanes = prepare_lanes(p);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int groups = kThreads / lanes;
  const S whole = whole_weight<S>(p.classes);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < p.logits_rows;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t row = first + static_cast<int>(threadIdx.x) / lanes;
    const int64_t classes = row < p.logits_rows ? p.classes : 0;
    const T* logits = static_cast<const T*>(p.logits) + row * p.classes;
    S max = LogSumExp<S>::lowest(), sum = 0;
    for (int64_t c = lane; c < classes; c += lanes) max = max_number(max, to_acc(logits[c]));
    max = reduce_group(max, lanes, [](S a, S b) { return max_number(a, b); });
    int64_t before = 0;  // the weights of the strips before this one
    for (int64_t strip = 0; strip < p.classes; strip += lanes) {
      const int64_t c = strip + lane;
      const S share = c < classes ? class_share(to_acc(logits[c]) - max) : S(0);
      sum += share;
      if (p.up_to == nullptr) continue;
      // Sums over a block of lanes that doubles: what is below this lane in it, and all of it.
      int64_t up_to = class_weight(share, whole), all = up_to;
      for (int half = 1; half < lanes; half *= 2) {
        const int64_t other = __shfl_xor_sync(kAllLanes, all, half);
        if (lane & half) up_to += other;
        all += other;
      }
      if (c < classes) p.up_to[row * p.classes + c] = before + up_to;
      before += all;
    }
    sum = sum_group(sum, lanes);
    if (lane == 0 && classes > 0) {
      S* to = static_cast<S*>(p.normaliser) + 3 * row;
      to[0] = max;
      to[1] = sum;
      to[2] = log(sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sample(const __grid_constant__ CategoricalSampleParams p) {
  wait_for_launch_before();
  using S = acc_t<T>;
  const uint64_t seed = static_cast<uint64_t>(p.key[0]), stream = static_cast<uint64_t>(p.key[1]);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; row < p.rows;
       row += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t own = row % p.logits_rows;
    uint32_t words[4];
    philox_words(seed, stream, p.samples.of(row), 0, words);
    const int64_t* up_to = p.up_to + own * p.classes;
    const uint64_t u = static_cast<uint64_t>(words[0]) << 32 | words[1];
    const int64_t x = class_at(up_to, p.classes, part_of(u, up_to[p.classes - 1]));
    const S logit = to_acc(static_cast<const T*>(p.logits)[own * p.classes + x]);
    p.value[row] = x;
    static_cast<S*>(p.log_prob)[row] =
        class_log_prob<S>(logit, static_cast<const S*>(p.normaliser) + 3 * own);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    accumulate(const __grid_constant__ CategoricalSampleParams p) {
  wait_for_launch_before();
  using S = acc_t<T>;
  const int lanes = backward_lanes(p);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int groups = kThreads / lanes;
  const int64_t tasks = p.logits_rows * p.classes;
  const S* grads = static_cast<const S*>(p.grad_log_prob);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < tasks;
       first += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t task = first + static_cast<int>(threadIdx.x) / lanes;
    const int64_t own = task / p.classes, c = task % p.classes;
    const int64_t samples = task < tasks ? p.rows / p.logits_rows : 0;
    S of_class = 0, of_others = 0;
    for (int64_t k = lane; k < samples; k += lanes) {
      const int64_t row = k * p.logits_rows + own;
      (p.drawn[row] == c ? of_class : of_others) += grads[row];
    }
    of_class = sum_group(of_class, lanes);
    of_others = sum_group(of_others, lanes);
    if (lane == 0 && task < tasks) {
      const S* total = static_cast<const S*>(p.normaliser) + 3 * own;
      const S logit = to_acc(static_cast<const T*>(p.logits)[task]);
      const S share = exp_nonpositive(logit - total[0]) / total[1];
      static_cast<T*>(p.grad_logits)[task] =
          from_acc<T>(of_class * (S(1) - share) - of_others * share);
    }
  }
}

constexpr const char* kUnknown = "categorical_sample: unknown element type";

}  // namespace

const char* categorical_sample_prepare::cuda(const CategoricalSampleParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.logits_rows, kThreads / prepare_lanes(p));
  FASTVI_SWITCH_DTYPE(p.dtype, T, { return launch_blocks(prepare<T>, blocks, stream, p); })
  return kUnknown;
}

const char* categorical_sample::cuda(const CategoricalSampleParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.rows, kThreads);
  FASTVI_SWITCH_DTYPE(p.dtype, T, { return launch_after<sample<T>>(blocks, stream, p); })
  return kUnknown;
}

const char* categorical_sample_backward::cuda(const CategoricalSampleParams& p, void* stream) {
  const int64_t blocks = ceil_div(p.logits_rows * p.classes, kThreads / backward_lanes(p));
  FASTVI_SWITCH_DTYPE(p.dtype, T, { return launch_after<accumulate<T>>(blocks, stream, p); })
  return kUnknown;
}

}  // namespace fastvi
