#include "categorical_log_prob/categorical_log_prob.h"
#include "driver.h"

namespace driver {
namespace {

struct Case {
  int64_t num_samples, batch, classes;
  Dtype dtype;
  bool shared_logits;  // one row of logits for each datum, and a value for each sample of it
  int64_t skip;
};

struct Outputs {
  Array out, grad;
};

void check(const Case& c) {
  const std::string what = std::string("categorical_log_prob ") + name_of(c.dtype) + " K " +
                           std::to_string(c.num_samples) + " B " + std::to_string(c.batch) + " C " +
                           std::to_string(c.classes);
  const Dtype acc = accumulate_type(c.dtype);
  const int64_t rows = c.num_samples * c.batch;
  const int64_t values = c.shared_logits ? rows : c.batch, own = c.shared_logits ? c.batch : rows;
  const Array logits = Array::random(c.dtype, own * c.classes, -3, 3, c.skip);
  const Array grad_out = Array::random(acc, rows, -1, 1);
  std::unique_ptr<int64_t[]> value(new int64_t[static_cast<size_t>(values)]);
  for (int64_t i = 0; i < values; ++i) value[static_cast<size_t>(i)] = 7 * i % c.classes;
  // No class: the density is NaN, and nothing is read out of range.
  if (values > 2) value[1] = c.classes, value[2] = -1;
  const auto compute = [&](bool cuda) {
    Outputs result{Array(acc, rows), Array(c.shared_logits ? acc : c.dtype, rows * c.classes)};
    fastvi::CategoricalLogProbParams p{};
    p.value = value.get();
    p.logits = logits.data();
    p.grad_out = grad_out.data();
    p.out = result.out.data();
    p.grad_logits = result.grad.data();
    p.rows = rows;
    p.classes = c.classes;
    p.value_period = values;
    p.logits_period = own;
    p.dtype = c.dtype;
    p.grad_in_acc = c.shared_logits;
    run<fastvi::categorical_log_prob>(what, cuda, p, rows);
    run<fastvi::categorical_log_prob_backward>(what, cuda, p, rows);
    return result;
  };
  const Outputs expected = compute(false), got = compute(true), again = compute(true);
  compare(what, got.out, expected.out);
  compare(what + " grad", got.grad, expected.grad);
  compare_bits(what, again.out, got.out);
  compare_bits(what + " grad", again.grad, got.grad);
}

}  // namespace

void categorical_cases() {
  const auto f32 = Dtype::f32, f64 = Dtype::f64, bf16 = Dtype::bf16, f16 = Dtype::f16;
  check({1, 1, 1, f32, false, 0});
  check({5, 7, 10, f32, false, 0});
  check({2, 3, 300, f32, true, 1});
  check({1, 3, 2500, f32, false, 0});
  check({2, 3, 33, f64, false, 0});
  check({2, 4, 17, bf16, true, 0});
  check({2, 4, 100, f16, false, 1});
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) check({3, 2, n, dtype, n % 2 == 0, n % 3});
  }
}

}  // namespace driver
