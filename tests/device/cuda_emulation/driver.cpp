// Runs the emulated CUDA kernels without Python or torch, on arrays of exact size, and compares
// them with the CPU kernels. Built with a sanitizer, it shows accesses out of range and races.
//
//   driver                               all cases; exit status 1 where a number differs
//   driver overrun | race | divergence   a planted bug, which has to be reported
#include "driver.h"

int main(int count, char** arguments) {
  const std::string asked = count > 1 ? arguments[1] : "";
  if (asked == "overrun") {
    driver::plant_overrun();
  } else if (asked == "race") {
    driver::plant_race();
  } else if (asked == "divergence") {
    driver::plant_divergence();
  } else {
    driver::iwlb_cases();
    driver::leave_one_out_cases();
    driver::row_sum_cases();
    driver::categorical_cases();
    driver::rsample_cases();
    driver::bernoulli_sample_cases();
    driver::categorical_sample_cases();
    std::printf("%d comparisons, %d failures\n", driver::comparisons, driver::failures);
  }
  return driver::failures == 0 ? 0 : 1;
}
