// The backward of engines/row_sum.h where the gradient of a broadcast operand is summed over rows
// on the way: it is never written at every element.
#pragma once

#include "engines/row_sum_each_cpu.h"

namespace fastvi {
FASTVI_ISA_BEGIN

// Sums of kShort rows meet in float64.
template <class Family, class S>
struct RowSumsCpu : RowSumCpu<Family, S> {
  using Base = RowSumCpu<Family, S>;
  using Base::arity;
  using Base::kBlock;
  using Base::lanes;
  using Base::p;
  using Base::uniform;
  using typename Base::Block;
  using typename Base::Buffer;
  using typename Base::Gradients;
  using typename Base::Row;
  using typename Base::V;
  static constexpr int kShort = 64;

  int64_t segment, from, to, repeat_chunk, data_chunk;  // of the task

  bool of_one[arity];  // its gradient is one number of a row, or of all
  bool added[arity];   // its gradient is added to that of other rows, element by element

  explicit RowSumsCpu(const RowSumParams& params) : Base(params) {
    for (int i = 0; i < arity; ++i) {
      const bool elsewhere =
          p.operands[i].grad != nullptr && p.grad_place[i] != GradPlace::elements;
      of_one[i] = elsewhere && uniform[i];
      added[i] = elsewhere && !uniform[i];
    }
  }

  bool summed(int i, GradPlace place) const {
    return p.operands[i].grad != nullptr && p.grad_place[i] == place;
  }
  // The part of a sum that belongs to the task and a datum, and its length.
  template <class U>
  U* part(int i, void* sums, int64_t datum) const {
    const int64_t row = p.grad_place[i] == GradPlace::data
                            ? repeat_chunk * p.cut.period + datum
                            : repeat_chunk * p.cut.data_chunks + data_chunk;
    return static_cast<U*>(sums) +
           (uniform[i] ? row * p.num_segments + segment : row * p.features + from);
  }
  int64_t length(int i) const { return uniform[i] ? 1 : to - from; }

  void clear(GradPlace place, int64_t begin, int64_t end) const {
    for (int i = 0; i < arity; ++i) {
      if (!summed(i, place)) continue;
      for (int64_t datum = begin; datum < end; ++datum) {
        if (p.total_in_double[i]) {
          clear(part<double>(i, p.operands[i].grad, datum), length(i));
        } else {
          clear(part<S>(i, p.operands[i].grad, datum), length(i));
        }
        if (!uniform[i]) clear(part<S>(i, p.recent[i], datum), length(i));
      }
    }
  }
  template <class U>
  static void clear(U* sums, int64_t length) {
    for (int64_t f = 0; f < length; ++f) sums[f] = 0;
  }

  void flush(GradPlace place, int64_t begin, int64_t end) const {
    for (int i = 0; i < arity; ++i) {
      if (uniform[i] || !summed(i, place)) continue;
      for (int64_t datum = begin; datum < end; ++datum) {
        S* recent = part<S>(i, p.recent[i], datum);
        if (p.total_in_double[i]) {
          flush(part<double>(i, p.operands[i].grad, datum), recent);
        } else {
          flush(part<S>(i, p.operands[i].grad, datum), recent);
        }
      }
    }
  }
  template <class U>
  void flush(U* total, S* recent) const {
    for (int64_t f = 0; f < to - from; ++f) {
      total[f] += recent[f];
      recent[f] = 0;
    }
  }

  // Of a block of `n` elements: gradients go to `places`, or are added to what is there; those of
  // one number to `total`.
  template <class K>
  FASTVI_HD void add(K, const Block& block, const S* grad, int64_t grad_mask, int64_t n,
                     const Gradients& places, double (&total)[arity]) const {
    Gradients to;
    V sum[arity];
    for (int i = 0; i < arity; ++i) {
      to[i] = places[i];
      sum[i] = broadcast<V>(0);
    }
    V x[arity], d[arity];
    if constexpr (K::last_is_one) x[arity - 1] = load<V>(block.x[arity - 1]);
    for (int64_t f = 0; f < n; f += lanes) {
      const int count = Base::left(n - f);
      Base::template read_next<K::last_is_one>(block, f, count, x);
      Family::derivatives(x, d);
      const V g = Base::read_one(grad + (f & grad_mask), count);
      FASTVI_UNROLL
      for (int i = K::first; i < arity; ++i) {
        if (to[i] == nullptr && !of_one[i]) continue;
        V back = sent_on(d[i], g);
        if (to[i] == nullptr) {
          sum[i] = sum[i] + (count == lanes ? back : keep_first(back, count));
          continue;
        }
        if (added[i]) back = Base::read_one(to[i] + f, count) + back;
        Base::write_one(to[i] + f, back, count);
      }
    }
    for (int i = 0; i < arity; ++i) {
      if (of_one[i]) total[i] += static_cast<double>(sum_lanes(sum[i]));
    }
  }

  // The same of a heavy family: its formula stands in the loop that writes derivatives down.
  template <class K>
  FASTVI_HD void add_written(K known, const Block& block, const S* grad, int64_t grad_mask,
                             int64_t n, const Gradients& places, double (&total)[arity]) const {
    Buffer written;
    Gradients to;
    for (int i = 0; i < arity; ++i) to[i] = added[i] || of_one[i] ? written[i] : places[i];
    Base::derivatives_of(known, block, grad, grad_mask, n, to);
    for (int i = K::first; i < arity; ++i) {
      if (of_one[i]) total[i] += Base::sum_of_written(written[i], n);
      if (!added[i]) continue;
      for (int64_t f = 0; f < n; ++f) places[i][f] += written[i][f];
    }
  }

  void row(int64_t r, int64_t datum) const {
    Row operands;
    this->open(r, &operands);
    double total[arity] = {};
    S* recent[arity];
    for (int i = 0; i < arity; ++i) recent[i] = added[i] ? part<S>(i, p.recent[i], datum) : nullptr;
    const S* grad_out = static_cast<const S*>(p.grad_out);
    const V grad = broadcast<V>(p.elementwise ? S(0) : grad_out[r]);
    Buffer buffer, grads;
    for (int64_t f = from; f < to; f += kBlock) {
      const int64_t n = min_i64(kBlock, to - f), at = r * p.features + f;
      Gradients places;
      this->place(at, grads, places);
      for (int i = 0; i < arity; ++i) {
        if (added[i]) places[i] = recent[i] + (f - from);
        if (of_one[i]) places[i] = nullptr;
      }
      const S* sent = p.elementwise ? grad_out + at : reinterpret_cast<const S*>(&grad);
      const Block x = this->block(operands, f, n, buffer);
      const int64_t mask = p.elementwise ? -1 : 0;
      this->specialised(places[0] != nullptr || of_one[0], [&](auto known) {
        if constexpr (Base::is_heavy) {
          add_written(known, x, sent, mask, n, places, total);
        } else {
          add(known, x, sent, mask, n, places, total);
        }
      });
      this->finish(at, n, grads, places);
    }
    for (int i = 0; i < arity; ++i) {
      if (!of_one[i]) continue;
      if (p.grad_place[i] == GradPlace::rows) {
        static_cast<S*>(p.operands[i].grad)[r * p.num_segments + segment] =
            static_cast<S>(total[i]);
      } else if (p.total_in_double[i]) {
        *part<double>(i, p.operands[i].grad, datum) += total[i];
      }
    }
  }

  void task(int64_t index) {
    const RowCut& cut = p.cut;
    segment = index % p.num_segments;
    data_chunk = index / p.num_segments % cut.data_chunks;
    repeat_chunk = index / p.num_segments / cut.data_chunks;
    from = segment * kRowSegment;
    to = min_i64(from + kRowSegment, p.features);
    const int64_t first = cut.period * data_chunk / cut.data_chunks;
    const int64_t last = cut.period * (data_chunk + 1) / cut.data_chunks;
    const int64_t repeat = cut.repeats * repeat_chunk / cut.repeat_chunks;
    const int64_t repeats = cut.repeats * (repeat_chunk + 1) / cut.repeat_chunks;
    clear(GradPlace::data, first, last);
    clear(GradPlace::shared, 0, 1);
    int rows = 0;
    for (int64_t begin = first; begin < last; begin += cut.at_once) {
      const int64_t end = min_i64(begin + cut.at_once, last);
      for (int64_t k = repeat; k < repeats; ++k) {
        for (int64_t datum = begin; datum < end; ++datum) {
          row(k * cut.period + datum, datum);
          if (++rows % kShort == 0) flush(GradPlace::shared, 0, 1);
        }
        if ((k - repeat) % kShort == kShort - 1) flush(GradPlace::data, begin, end);
      }
      flush(GradPlace::data, begin, end);
    }
    flush(GradPlace::shared, 0, 1);
  }
};

FASTVI_ISA_END
}  // namespace fastvi
