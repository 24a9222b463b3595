// Runs the CPU kernels of the machine's best instruction set, or of FASTVI_CPU_ISA, without Python
// or torch, on arrays of exact size and in ranges of tasks, and compares them with the baseline's.
//
//   cpu_driver                                all cases; exit status 1 where a number differs
//   cpu_driver overrun | beyond | undefined   arguments that lie, which has to be reported; beyond:
//                                             with a page behind the array that no one may touch
#include "bernoulli_log_prob/bernoulli_log_prob.h"
#include "driver.h"

namespace {

// Two rows of values lie `row_stride` apart, in an array that has room for `size` of them.
void sum_rows(int64_t size, int64_t features, int64_t row_stride) {
  const auto f32 = fastvi::Dtype::f32;
  const driver::Array x = driver::Array::random(f32, size, 0, 1), out(f32, 3);
  fastvi::bernoulli_log_prob::Params p{};
  p.rows = 3;
  p.features = features;
  p.num_segments = 1;
  p.dtype = p.value_dtype = f32;
  for (auto& operand : p.operands) {
    operand.data = x.data();
    operand.period = 3;
    operand.stride = 1;
    operand.row_stride = row_stride;
  }
  p.out = out.data();
  driver::run<fastvi::bernoulli_log_prob>("planted", true, p, 3);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string asked = count > 1 ? arguments[1] : "";
  driver::guarded = asked == "beyond";
  if (asked == "overrun" || asked == "beyond") {
    sum_rows(3 * 37 - 1, 37, 37);
  } else if (asked == "undefined") {
    // The second row is within the array, once it is counted in bytes; where the third lies
    // overflows.
    sum_rows(3 * 37, 37, (INT64_MAX >> 1) + 2);
  } else {
    for (const bool guarded : {false, true}) {
      driver::guarded = guarded;
      driver::iwlb_cases();
      driver::leave_one_out_cases();
      driver::row_sum_cases();
      driver::categorical_cases();
      driver::rsample_cases();
      driver::bernoulli_sample_cases();
      driver::categorical_sample_cases();
    }
    std::printf("%s: %d comparisons, %d failures\n", fastvi::cpu_isa_name(fastvi::cpu_isa()),
                driver::comparisons, driver::failures);
  }
  return driver::failures == 0 ? 0 : 1;
}
