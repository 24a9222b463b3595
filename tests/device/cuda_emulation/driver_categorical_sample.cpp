#include "categorical_sample/categorical_sample.h"
#include "driver.h"

namespace driver {
namespace {

struct Case {
  int64_t num_samples, batch, classes;
  Dtype dtype;
  bool shared_logits;  // one row of logits for each datum, not for each of its samples
  int64_t skip;
  bool numbered = false;  // samples by their numbers
};

struct Outputs {
  std::vector<int64_t> up_to, value;
  Array log_prob, grad;
};

void check(const Case& c) {
  const std::string what = std::string("categorical_sample ") + name_of(c.dtype) + " K " +
                           std::to_string(c.num_samples) + " B " + std::to_string(c.batch) + " C " +
                           std::to_string(c.classes);
  const Dtype acc = accumulate_type(c.dtype);
  const int64_t rows = c.num_samples * c.batch;
  const int64_t own = c.shared_logits ? c.batch : rows;
  Array logits = Array::random(c.dtype, own * c.classes, -3, 3, c.skip);
  // Classes that cannot be, the first among them.
  for (int64_t i = 0; c.classes > 2 && i < logits.size(); i += 5) logits.set(i, -fastvi::kInfinity);
  const Array grad_log_prob = Array::random(acc, rows, -1, 1);
  const int64_t key[2] = {0x0123456789abcdef, 77};
  const auto numbers = some_numbers(rows);
  const auto compute = [&](bool cuda) {
    Outputs out{std::vector<int64_t>(static_cast<size_t>(own * c.classes)),
                std::vector<int64_t>(static_cast<size_t>(rows)), Array(acc, rows),
                Array(c.dtype, own * c.classes)};
    const Array normaliser(acc, own * 3);
    fastvi::CategoricalSampleParams p{};
    p.logits = logits.data();
    p.key = key;
    p.rows = rows;
    p.logits_rows = own;
    p.classes = c.classes;
    p.samples = {c.numbered ? numbers.data() : nullptr, 3, c.batch};
    p.dtype = c.dtype;
    p.normaliser = normaliser.data();
    p.up_to = out.up_to.data();
    p.value = out.value.data();
    p.log_prob = out.log_prob.data();
    p.grad_log_prob = grad_log_prob.data();
    p.drawn = out.value.data();
    p.grad_logits = out.grad.data();
    run<fastvi::categorical_sample_prepare>(what, cuda, p, own);
    run<fastvi::categorical_sample>(what, cuda, p, rows);
    // As the backward pass does it, which draws nothing.
    p.up_to = nullptr;
    run<fastvi::categorical_sample_prepare>(what, cuda, p, own);
    run<fastvi::categorical_sample_backward>(what, cuda, p, own);
    return out;
  };
  const Outputs expected = compute(false), got = compute(true), again = compute(true);
  ++comparisons;
  // float64 shares may differ by ulps between machines.
  if (c.dtype != Dtype::f64 && got.up_to != expected.up_to)
    fail(what + ": expected the same weights");
  if (got.value != expected.value) fail(what + ": expected the same classes");
  compare(what, got.log_prob, expected.log_prob);
  compare(what + " grad", got.grad, expected.grad);
  compare_bits(what, again.log_prob, got.log_prob);
  compare_bits(what + " grad", again.grad, got.grad);
}

}  // namespace

void categorical_sample_cases() {
  const auto f32 = Dtype::f32, f64 = Dtype::f64, bf16 = Dtype::bf16, f16 = Dtype::f16;
  check({1, 1, 1, f32, false, 0});
  check({5, 7, 13, f32, true, 0});
  check({70, 2, 3, f32, true, 0});
  check({2, 3, 67, f32, false, 1});
  check({2, 2, 300, f64, true, 0});
  check({3, 4, 17, bf16, true, 0});
  check({2, 4, 33, f16, false, 1});
  check({5, 7, 13, f32, true, 0, true});
  check({70, 2, 3, f64, true, 0, true});
  check({9, 3, 17, bf16, false, 0, true});
  for (const int64_t n : kSizes) {
    for (const Dtype dtype : kDtypes) check({3, 2, n, dtype, n % 2 == 0, n % 3});
  }
}

}  // namespace driver
