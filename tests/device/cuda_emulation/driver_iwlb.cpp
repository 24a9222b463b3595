#include "driver.h"
#include "iwlb/iwlb.h"

namespace driver {
namespace {

using fastvi::IwlbParams;

struct Case {
  int64_t num_samples, batch;
  bool samples_last, three_terms;
  double alpha;
  Dtype dtype;
  int64_t skip;
  int64_t splits = 3;
};

struct Outputs {
  Array bound, shift, total, grad;
};

struct Inputs {
  Array x, z, q, grad;
};

Outputs compute(const std::string& what, bool cuda, const Case& c, const Inputs& in) {
  const Dtype acc = accumulate_type(c.dtype);
  Outputs out{Array(acc, c.batch), Array(acc, c.batch), Array(acc, c.batch),
              Array(c.dtype, c.num_samples * c.batch, c.skip)};
  IwlbParams p{};
  p.log_px = in.x.data();
  p.log_pz = c.three_terms ? in.z.data() : nullptr;
  p.log_qz = c.three_terms ? in.q.data() : nullptr;
  p.num_samples = c.num_samples;
  p.batch = c.batch;
  p.stride_k = c.samples_last ? 1 : c.batch;
  p.stride_b = c.samples_last ? c.num_samples : 1;
  p.dtype = c.dtype;
  p.alpha = c.alpha;
  // Short splits, so that several of them meet.
  p.split_size = std::max<int64_t>(8, c.num_samples / c.splits);
  p.num_splits = fastvi::ceil_div(c.num_samples, p.split_size);
  const int64_t rows = fastvi::iwlb_partial_rows(p);
  const Array partial_max(acc, rows * c.batch), partial_sum(acc, rows * c.batch);
  p.partial_max = partial_max.data();
  p.partial_sum = partial_sum.data();
  p.bound = out.bound.data();
  p.shift = out.shift.data();
  p.total = out.total.data();
  p.grad_bound = in.grad.data();
  p.grad_log_w = out.grad.data();
  const int64_t tasks = p.num_splits * fastvi::iwlb_column_tiles(p);
  run<fastvi::iwlb_partial>(what, cuda, p, tasks);
  run<fastvi::iwlb_combine>(what, cuda, p, c.batch);
  run<fastvi::iwlb_backward>(what, cuda, p, tasks);
  return out;
}

void check(const Case& c) {
  const int64_t size = c.num_samples * c.batch;
  Inputs in{Array::random(c.dtype, size, -20, 20, c.skip),
            Array::random(c.dtype, size, -2, 2, c.skip),
            Array::random(c.dtype, size, -2, 2, c.skip),
            Array::random(accumulate_type(c.dtype), c.batch, -1, 1)};
  // The first column has no possible sample, the last one a sample of infinite weight.
  if (c.batch > 2) {
    const int64_t stride = c.samples_last ? 1 : c.batch,
                  column = c.samples_last ? c.num_samples : 1;
    for (int64_t k = 0; k < c.num_samples; ++k) in.x.set(k * stride, -fastvi::kInfinity);
    in.x.set((c.num_samples - 1) * stride + (c.batch - 1) * column, fastvi::kInfinity);
  }
  const std::string what = std::string("iwlb ") + name_of(c.dtype) + " K " +
                           std::to_string(c.num_samples) + " B " + std::to_string(c.batch) +
                           (c.samples_last ? " samples last" : "") + " alpha " +
                           std::to_string(c.alpha);
  const Outputs expected = compute(what, false, c, in), got = compute(what, true, c, in);
  compare(what + " bound", got.bound, expected.bound);
  compare(what + " grad", got.grad, expected.grad);
  // The same input gives the same bits.
  const Outputs again = compute(what, true, c, in);
  compare_bits(what + " bound", again.bound, got.bound);
  compare_bits(what + " grad", again.grad, got.grad);
  if (kDrivesCpu || c.splits == 3) return;
  // A launch that puts the splits together, where a graph is recorded.
  [[maybe_unused]] const Recording recording;
  const Outputs recorded = compute(what, true, c, in);
  compare(what + " recorded bound", recorded.bound, expected.bound);
  compare(what + " recorded grad", recorded.grad, expected.grad);
}

}  // namespace

void iwlb_cases() {
  check({1, 1, false, false, 0.0, Dtype::f32, 0});
  check({5, 3, false, true, 0.0, Dtype::f32, 0});
  check({50, 20, false, false, 0.0, Dtype::f32, 0});
  check({50, 20, false, true, 0.5, Dtype::bf16, 1});
  check({37, 300, false, false, 0.0, Dtype::f16, 0});
  check({21, 258, false, false, 2.0, Dtype::f64, 0});
  check({40, 21, false, false, 1.0, Dtype::f32, 1});
  check({700, 1, true, false, 0.0, Dtype::f32, 0});
  check({6000, 3, true, true, 0.0, Dtype::f32, 0});
  check({48, 20, true, false, 0.0, Dtype::bf16, 0});
  check({5, 4, true, true, 1.0, Dtype::f64, 0});
  check({33, 9, true, false, -1.0, Dtype::f16, 1});
  // Splits that meet in groups, and splits of whole blocks.
  check({560, 5, false, false, 0.0, Dtype::f32, 0, 70});
  check({300, 260, false, true, 0.5, Dtype::f64, 0, 36});
  check({5000, 2, true, false, 0.0, Dtype::f32, 0, 2});
  check({35000, 1, true, false, 0.0, Dtype::f64, 0, 34});
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) {
      check({n, 3, false, true, 0.0, dtype, n % 3});
      check({4, n, false, false, 0.5, dtype, n % 2});
      check({n, 2, true, false, 0.0, dtype, n % 3});
      check({3, n, true, true, 2.0, dtype, 0});
    }
  }
}

}  // namespace driver
