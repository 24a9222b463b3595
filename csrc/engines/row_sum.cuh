// The CUDA kernels of engines/row_sum.h: a group of adjacent lanes for a segment of a row, a block
// where the segment is long. Each lane reads packs of 16 bytes where the layout allows it, and
// single elements where not.
#pragma once

#include "engines/row_plan.cuh"
#include "engines/row_sum_over_rows.cuh"
#include "simd/vector_load.cuh"

namespace fastvi {

// Blocks of a multiprocessor that the registers must allow; fewer where a family says so.
template <class Family, class T>
constexpr int kRowBlocks = [] {
  if constexpr (sizeof(T) == 8 && requires { Family::kCudaBlocksInDouble; }) {
    return Family::kCudaBlocksInDouble;
  } else if constexpr (requires { Family::kCudaBlocks; }) {
    return Family::kCudaBlocks;
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // The same code takes more registers there.
  return 2;
#else
  return sizeof(T) == 4 ? 3 : 2;
#endif
}();

// Blocks that a multiprocessor has to hold of a backward kernel.
template <class Family, class T>
constexpr int kRowBackwardBlocks = [] {
  if constexpr (sizeof(T) == 8 && requires { Family::kCudaBackwardBlocksInDouble; }) {
    return Family::kCudaBackwardBlocksInDouble;
  }
  return sizeof(T) != 4 && Family::arity > 3 ? 1 : 2;
}();

// Whether the value has the type of the parameters, see RowSumParams.
enum class ValueType { own, wider, any };

template <class Family, class T, bool vector>
struct RowSumCuda {
  using S = acc_t<T>;
  static constexpr int arity = Family::arity;
  static constexpr int n = vector ? kPack<T> : 1;
  static constexpr int access = vector ? 16 : 1;
  // Elements of each operand that a thread has on their way at once: 64 bytes over all operands,
  // as a rule. Arithmetic in float64 takes so long that fewer do.
  // A family with much arithmetic takes pack after pack.
  static constexpr int kAtOnce = sizeof(S) == 8 ? 2 : arity <= (vector ? 3 : 2) ? 8 : 4;
  static constexpr bool kHeavy = sizeof(S) == 8 || requires { Family::kIsHeavy; };
  static constexpr int batch = kAtOnce > n ? kAtOnce / n : 1;
  using Raw = RawPack<T, vector>;

  const RowSumParams& p;
  const RowPlan& plan;
  int lane;
  bool exists;  // a group beyond the last task has none
  int length;   // of the segment
  RowPlace<arity> place;

  __device__ __forceinline__ RowSumCuda(const RowSumParams& params, const RowPlan& the_plan)
      : p(params), plan(the_plan) {
    lane = static_cast<int>(threadIdx.x) & (plan.lanes() - 1);
  }

  // Goes to a task. A group beyond the last one still takes part in the reduction of its warp.
  __device__ __forceinline__ void go_to(int64_t task) {
    exists = task < plan.tasks;
    place.go_to(exists ? task : 0, p, plan,
                [this](int i) { return value_is_wider(i) ? sizeof(S) : sizeof(T); });
    length = exists ? place.length : 0;
  }
  __device__ __forceinline__ int64_t first_element() const {
    return place.row * p.features + static_cast<int64_t>(place.segment) * kRowSegment;
  }

  __device__ __forceinline__ int first() const { return lane * n; }
  __device__ __forceinline__ int step() const { return n << plan.log_lanes; }
  __device__ __forceinline__ bool value_is_wider(int operand) const {
    return sizeof(T) == 2 && operand == 0 && p.value_dtype == Dtype::f32;
  }
  __device__ __forceinline__ bool is_uniform(int operand) const {
    return (plan.uniform >> operand & 1) != 0;
  }

  // Packs of every operand, all on their way before any of them is used. One number that serves
  // all features of a row is read once, if `uniform` says that there may be one.
  template <int packs, bool uniform, ValueType type>
  struct Batch {
    const RowSumCuda& rows;
    Raw raw[packs][arity];
    S value[packs][n];  // in half precision, where it may be wider

    __device__ __forceinline__ bool is_wider(int i) const {
      if (type == ValueType::any) return rows.value_is_wider(i);
      return type == ValueType::wider && i == 0;
    }
    __device__ __forceinline__ explicit Batch(const RowSumCuda& r) : rows(r) {
      if constexpr (uniform && vector) {
        FASTVI_UNROLL
        for (int i = 0; i < arity; ++i) {
          if (!rows.is_uniform(i)) continue;
          const char* const at = rows.place.operands[i];
          FASTVI_UNROLL
          for (int u = 0; u < packs; ++u) {
            if (is_wider(i)) {
              FASTVI_UNROLL
              for (int j = 0; j < n; ++j) value[u][j] = *reinterpret_cast<const S*>(at);
            } else {
              raw[u][i].fill(*reinterpret_cast<const T*>(at));
              if (sizeof(T) == 2 && i == 0) raw[u][i].to(value[u]);
            }
          }
        }
      }
    }

    template <class U>
    __device__ __forceinline__ const U* at(int i, int f) const {
      // Of single elements, that of one which serves all is read again and again.
      if (uniform && !vector && rows.is_uniform(i)) f = 0;
      return reinterpret_cast<const U*>(rows.place.operands[i] +
                                        static_cast<int64_t>(f) * static_cast<int>(sizeof(U)));
    }
    // The packs f, f + step, ...: `whole` says that all of them are in the segment.
    template <bool whole>
    __device__ __forceinline__ void load(int f) {
      FASTVI_UNROLL
      for (int i = arity - 1; i >= 0; --i) {
        if (uniform && vector && rows.is_uniform(i)) continue;
        if (is_wider(i)) {
          FASTVI_UNROLL
          for (int u = 0; u < packs; ++u) {
            const int pack = f + u * rows.step();
            if (whole || pack < rows.length) load_pack<access>(at<S>(i, pack), value[u]);
          }
          continue;
        }
        FASTVI_UNROLL
        for (int u = 0; u < packs; ++u) {
          const int pack = f + u * rows.step();
          if (whole || pack < rows.length) raw[u][i].load(at<T>(i, pack));
        }
        if constexpr (sizeof(T) == 2) {
          if (i == 0) {
            FASTVI_UNROLL
            for (int u = 0; u < packs; ++u) raw[u][i].to(value[u]);
          }
        }
      }
    }
    // Pack u in the accumulation type.
    __device__ __forceinline__ void get(int u, S (&x)[arity][n]) const {
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        if (sizeof(T) == 2 && i == 0) {
          FASTVI_UNROLL
          for (int j = 0; j < n; ++j) x[i][j] = value[u][j];
        } else {
          raw[u][i].to(x[i]);
        }
      }
    }

    template <bool whole, class Use>
    __device__ __forceinline__ void use(int f, Use use) {
      load<whole>(f);
      FASTVI_UNROLL
      for (int u = 0; u < packs; ++u) {
        const int pack = f + u * rows.step();
        if (!whole && pack >= rows.length) break;
        S x[arity][n];
        get(u, x);
        use(pack, x);
      }
    }
  };

  // Calls use(f, x) for every pack that is this lane's, in their order: whole batches without a
  // check, then what is left.
  template <class Use>
  __device__ __forceinline__ void for_each_pack(Use use) const {
    if constexpr (kHeavy) {
      for_each_pack_in_turn(use);
    } else {
      if (vector && plan.uniform != 0) return for_each_pack_in_turn(use);
      if (sizeof(T) == 2 && value_is_wider(0)) return for_each_batch<ValueType::wider>(use);
      for_each_batch<ValueType::own>(use);
    }
  }
  template <ValueType type, class Use>
  __device__ __forceinline__ void for_each_batch(Use use) const {
    int f = first();
    Batch<batch, !vector, type> packs(*this);
    for (; f + (batch - 1) * step() < length; f += batch * step()) {
      packs.template use<true>(f, use);
    }
    if constexpr (batch > 1) {
      Batch<batch - 1, !vector, type> left(*this);
      if (f < length) left.template use<false>(f, use);
    }
  }
  // The same pack by pack, whatever the operands are: it takes little code.
  template <class Use>
  __device__ __forceinline__ void for_each_pack_in_turn(Use use) const {
    Batch<1, true, ValueType::any> pack(*this);
    FASTVI_ONE_BY_ONE
    for (int f = first(); f < length; f += step()) pack.template use<true>(f, use);
  }

  static __device__ __forceinline__ void pick(const S (&x)[arity][n], int j, S (&operands)[arity]) {
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) operands[i] = x[i][j];
  }

  // ---- the kernels' bodies ----------------------------------------------------------------------
  // A lane has at most 64 elements of a segment, which is one short sum.
  template <class Of>
  struct LaneSum {
    typename Of::template Sum<S> sum;
    __device__ __forceinline__ void operator()(int, const S (&x)[arity][n]) {
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) {
        S operands[arity];
        pick(x, j, operands);
        sum.add(operands);
      }
    }
    __device__ __forceinline__ S total() {
      sum.flush();
      return sum.total;
    }
  };
  // What is left after whole rounds of packs goes out by the element: else a row's last packs would
  // keep a few lanes busy, and all of them waiting.
  template <class Of>
  __device__ __forceinline__ S lane_sum_spread() const {
    LaneSum<Of> sum;
    RowSumCuda rounds(*this);
    rounds.length = length & ~(step() - 1);
    rounds.for_each_pack_in_turn([&](int f, const S(&x)[arity][n]) { sum(f, x); });
    RowSumCuda<Family, T, false> rest(p, plan);
    rest.length = length - rounds.length;
    FASTVI_UNROLL
    for (int i = 0; i < arity; ++i) {
      const int size = value_is_wider(i) ? sizeof(S) : sizeof(T);
      rest.place.operands[i] = place.operands[i] + (is_uniform(i) ? 0 : rounds.length * size);
    }
    rest.for_each_pack_in_turn([&](int, const S(&x)[arity][1]) {
      S operands[arity];
      RowSumCuda<Family, T, false>::pick(x, 0, operands);
      sum.sum.add(operands);
    });
    return sum.total();
  }
  __device__ __forceinline__ S lane_sum() const {
    if constexpr (vector && requires { Family::kCudaSpreadsRest; }) {
      S total = lane_sum_spread<typename QuickOf<Family>::type>();
      if (!(abs(total) <= largest_number<S>())) total = lane_sum_spread<Family>();
      return total;
    } else {
      LaneSum<typename QuickOf<Family>::type> lane_sum;
      for_each_pack([&](int f, const S(&x)[arity][n]) { lane_sum(f, x); });
      S total = lane_sum.total();
      if constexpr (requires { typename Family::Quick; }) {
        if (!(abs(total) <= largest_number<S>())) {
          LaneSum<Family> careful;
          for_each_pack_in_turn([&](int f, const S(&x)[arity][n]) { careful(f, x); });
          total = careful.total();
        }
      }
      return total;
    }
  }
  __device__ __forceinline__ S sum() const { return sum_group(lane_sum(), plan.lanes()); }

  __device__ __forceinline__ void values() const {
    S* out = static_cast<S*>(p.out) + first_element();
    for_each_pack([&](int f, const S(&x)[arity][n]) {
      S y[n];
      FASTVI_UNROLL
      for (int j = 0; j < n; ++j) {
        S operands[arity];
        pick(x, j, operands);
        y[j] = Family::value(operands);
      }
      store_pack<access>(out + f, y);
    });
  }

  // Where the gradients of this segment go.
  struct Gradients {
    const RowSumCuda& rows;
    char* to[arity];

    __device__ __forceinline__ explicit Gradients(const RowSumCuda& r) : rows(r) {
      const int64_t base = rows.first_element();
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        const int size = is_wide(i) ? sizeof(S) : sizeof(T);
        to[i] = static_cast<char*>(rows.p.operands[i].grad) + base * size;
      }
    }
    __device__ __forceinline__ bool is_wide(int i) const {
      return sizeof(T) == 2 && (rows.p.grad_in_acc[i] || rows.value_is_wider(i));
    }
    __device__ __forceinline__ bool are_asked_for(int i) const {
      return rows.p.operands[i].grad != nullptr;
    }
    __device__ __forceinline__ void store(int i, int f, const S (&x)[n]) const {
      if (is_wide(i)) {
        store_pack<access>(reinterpret_cast<S*>(to[i]) + f, x);
      } else {
        store_pack<access>(reinterpret_cast<T*>(to[i]) + f, x);
      }
    }
    __device__ __forceinline__ void store_zeros() const {
      const S zeros[n] = {};
      FASTVI_ONE_BY_ONE
      for (int f = rows.first(); f < rows.length; f += rows.step()) {
        FASTVI_UNROLL
        for (int i = 0; i < arity; ++i) {
          if (are_asked_for(i)) store(i, f, zeros);
        }
      }
    }
  };

  __device__ __forceinline__ void derivatives() const {
    const Gradients to(*this);
    if (p.elementwise) {
      const S* grads = static_cast<const S*>(p.grad_out) + first_element();
      for_each_pack_in_turn([&](int f, const S(&x)[arity][n]) {
        S grad[n], d[arity][n];
        load_pack<access>(grads + f, grad);
        derivatives_of_pack<Family>(x, d);
        FASTVI_UNROLL
        for (int i = 0; i < arity; ++i) {
          if (!to.are_asked_for(i)) continue;
          FASTVI_UNROLL
          for (int j = 0; j < n; ++j) d[i][j] = sent_on(d[i][j], grad[j]);
          to.store(i, f, d[i]);
        }
      });
      return;
    }
    // A row to which nothing comes back sends nothing on, see sent_on.
    const S grad = static_cast<const S*>(p.grad_out)[place.row];
    if (grad == 0) return to.store_zeros();
    for_each_pack([&](int f, const S(&x)[arity][n]) {
      S d[arity][n];
      derivatives_of_pack<Family>(x, d);
      FASTVI_UNROLL
      for (int i = 0; i < arity; ++i) {
        if (!to.are_asked_for(i)) continue;
        FASTVI_UNROLL
        for (int j = 0; j < n; ++j) d[i][j] = d[i][j] * grad;
        to.store(i, f, d[i]);
      }
    });
  }
};

template <class Family, class T, bool vector>
__global__ void __launch_bounds__(kThreads, kRowBlocks<Family, T>)
    row_sum_kernel(const __grid_constant__ RowSumParams p, const __grid_constant__ RowPlan plan) {
  if constexpr (kRowsArePrepared<Family>) wait_for_launch_before();
  if constexpr (requires { Family::kPrepares; }) may_be_followed();
  RowSumCuda<Family, T, vector> rows(p, plan);
  const int group = static_cast<int>(threadIdx.x) >> plan.log_lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.groups(); first < plan.tasks;
       first += static_cast<int64_t>(gridDim.x) * plan.groups()) {
    rows.go_to(first + group);
    if (p.elementwise) {
      rows.values();
      continue;
    }
    const auto sum = rows.sum();
    if (rows.lane == 0 && rows.exists) {
      static_cast<acc_t<T>*>(p.out)[rows.place.row * p.num_segments + rows.place.segment] = sum;
    }
  }
}

template <class Family, class T, bool vector>
__global__ void __launch_bounds__(kThreads, kRowBackwardBlocks<Family, T>)
    row_sum_backward_kernel(const __grid_constant__ RowSumParams p,
                            const __grid_constant__ RowPlan plan) {
  if constexpr (kRowsArePrepared<Family>) wait_for_launch_before();
  RowSumCuda<Family, T, vector> rows(p, plan);
  const int group = static_cast<int>(threadIdx.x) >> plan.log_lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.groups(); first < plan.tasks;
       first += static_cast<int64_t>(gridDim.x) * plan.groups()) {
    rows.go_to(first + group);
    rows.derivatives();
  }
}

// Whether every operand, gradient and output lies in whole aligned packs.
template <class Family, class T>
bool row_sum_in_packs(const RowSumParams& p) {
  if (p.features % kPack<T> != 0) return false;
  uint64_t low_bits = 0;
  for (int i = 0; i < Family::arity; ++i) {
    const Operand& o = p.operands[i];
    const uint64_t size = i == 0 && p.value_dtype == Dtype::f32 ? 4 : sizeof(T);
    if (o.stride != 0) low_bits |= address_of(o.data) | static_cast<uint64_t>(o.row_stride) * size;
    low_bits |= address_of(o.grad);
  }
  if (p.elementwise) low_bits |= address_of(p.out) | address_of(p.grad_out);
  return low_bits % 16 == 0;
}

template <class Family, bool backward, class T>
const char* launch_row_sum_of(const RowSumParams& p, void* stream) {
  const int64_t value_size = p.value_dtype == Dtype::f32 ? 4 : sizeof(T);
  const RowPlan plan = row_plan(p, Family::arity, value_size, sizeof(T));
  const int64_t blocks = ceil_div(plan.tasks, plan.groups());
  const bool packs = row_sum_in_packs<Family, T>(p);
  constexpr bool waits = kRowsArePrepared<Family>;
  if constexpr (backward) {
    if (p.cut.period != 0) {
      return packs ? launch_row_sum_over_rows<Family, T, true>(p, stream)
                   : launch_row_sum_over_rows<Family, T, false>(p, stream);
    }
    return packs ? launch_resident<row_sum_backward_kernel<Family, T, true>, waits>(blocks, stream,
                                                                                    p, plan)
                 : launch_resident<row_sum_backward_kernel<Family, T, false>, waits>(blocks, stream,
                                                                                     p, plan);
  } else {
    return packs
               ? launch_resident<row_sum_kernel<Family, T, true>, waits>(blocks, stream, p, plan)
               : launch_resident<row_sum_kernel<Family, T, false>, waits>(blocks, stream, p, plan);
  }
}
template <class Family, bool backward>
const char* launch_row_sum(const RowSumParams& p, void* stream) {
  FASTVI_SWITCH_DTYPE(p.dtype, T, return (launch_row_sum_of<Family, backward, T>(p, stream)))
  return "unknown element type";
}
// Of what is prepared: half precision is not, see torch/negative_binomial.h.
template <class Family, bool backward>
const char* launch_prepared_row_sum(const RowSumParams& p, void* stream) {
  if (p.dtype == Dtype::f32) return launch_row_sum_of<Family, backward, float>(p, stream);
  if (p.dtype == Dtype::f64) return launch_row_sum_of<Family, backward, double>(p, stream);
  return "a prepared row sum of another element type than float32 or float64";
}

}  // namespace fastvi
