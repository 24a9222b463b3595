#include "driver.h"
#include "leave_one_out/leave_one_out.h"

namespace driver {
namespace {

using fastvi::LeaveOneOutParams;

struct Case {
  int64_t num_samples, batch;
  Dtype dtype;
  int64_t skip;
  int64_t splits = 3;
};

struct Outputs {
  Array out, grad_log_w;
};

Outputs compute(const std::string& what, bool cuda, const Case& c, const Array& log_w,
                const Array& grad) {
  const Dtype acc = accumulate_type(c.dtype);
  Outputs out{Array(acc, c.num_samples * c.batch, c.skip),
              Array(c.dtype, c.num_samples * c.batch, c.skip)};
  LeaveOneOutParams p{};
  p.log_w = log_w.data();
  p.num_samples = c.num_samples;
  p.batch = c.batch;
  p.dtype = c.dtype;
  // Short splits, so that several of them meet.
  p.split_size = std::max<int64_t>(8, c.num_samples / c.splits);
  p.num_splits = fastvi::ceil_div(c.num_samples, p.split_size);
  const Array partial(acc, 3 * p.num_splits * c.batch), state(acc, 3 * c.batch),
      signals(acc, 3 * c.batch);
  p.partial = partial.data();
  p.state = state.data();
  p.signals = signals.data();
  p.out = out.out.data();
  p.grad = grad.data();
  p.grad_log_w = out.grad_log_w.data();
  const int64_t tasks = p.num_splits * fastvi::leave_one_out_tiles(p);
  run<fastvi::leave_one_out_reduce>(what, cuda, p, tasks);
  run<fastvi::leave_one_out_combine>(what, cuda, p, c.batch);
  run<fastvi::leave_one_out_write>(what, cuda, p, tasks);
  run<fastvi::leave_one_out_backward_reduce>(what, cuda, p, tasks);
  run<fastvi::leave_one_out_backward_combine>(what, cuda, p, c.batch);
  run<fastvi::leave_one_out_backward_write>(what, cuda, p, tasks);
  return out;
}

void check(const Case& c) {
  const int64_t size = c.num_samples * c.batch;
  Array log_w = Array::random(c.dtype, size, -20, 20, c.skip);
  const Array grad = Array::random(accumulate_type(c.dtype), size, -1, 1, c.skip);
  // No possible sample in the first column, one that dominates in the last.
  if (c.batch > 2) {
    for (int64_t k = 0; k < c.num_samples; ++k) log_w.set(k * c.batch, -fastvi::kInfinity);
    log_w.set(size - 1, 300.0);
  }
  const std::string what = std::string("leave_one_out ") + name_of(c.dtype) + " K " +
                           std::to_string(c.num_samples) + " B " + std::to_string(c.batch);
  const Outputs expected = compute(what, false, c, log_w, grad),
                got = compute(what, true, c, log_w, grad);
  compare(what + " out", got.out, expected.out);
  compare(what + " grad", got.grad_log_w, expected.grad_log_w);
  // The same input gives the same bits.
  const Outputs again = compute(what, true, c, log_w, grad);
  compare_bits(what + " out", again.out, got.out);
  compare_bits(what + " grad", again.grad_log_w, got.grad_log_w);
  if (kDrivesCpu || c.splits == 3) return;
  // A launch that puts the splits together, where a graph is recorded.
  [[maybe_unused]] const Recording recording;
  const Outputs recorded = compute(what, true, c, log_w, grad);
  compare(what + " recorded out", recorded.out, expected.out);
  compare(what + " recorded grad", recorded.grad_log_w, expected.grad_log_w);
}

}  // namespace

void leave_one_out_cases() {
  check({2, 1, Dtype::f32, 0});
  check({5, 3, Dtype::f32, 0});
  check({50, 20, Dtype::f32, 1});
  check({50, 20, Dtype::bf16, 1});
  check({37, 300, Dtype::f16, 0});
  check({21, 258, Dtype::f64, 0});
  check({700, 1, Dtype::f32, 0});
  check({3000, 3, Dtype::f32, 0});
  // Many splits, and few, of a column and of several tiles.
  check({560, 1, Dtype::f32, 0, 70});
  check({100, 5, Dtype::f64, 0, 12});
  check({48, 300, Dtype::f32, 0, 6});
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) {
      check({n + 1, 3, dtype, n % 3});
      check({4, n, dtype, n % 2});
    }
  }
}

}  // namespace driver
