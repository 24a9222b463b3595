// Runs the kernels' own PTX on the host, on arrays of exact size, and compares with the CPU
// kernels.
//
//   ptx_driver [--order ascending|descending|mixed] [--grid BLOCKS] [--report FILE] CASES...
//
// CASES are those of cuda_emulation/driver_*.cpp by name, or "planted NAME", a fault that has to be
// found.
#include <functional>
#include <map>

#include "cuda_emulation/driver.h"
#include "ptx/machine.h"
#include "ptx/planted.h"

namespace {

const std::map<std::string, std::function<void()>> kCases = {
    {"iwlb", driver::iwlb_cases},
    {"leave_one_out", driver::leave_one_out_cases},
    {"row_sum", driver::row_sum_cases},
    {"categorical", driver::categorical_cases},
    {"rsample", driver::rsample_cases},
    {"bernoulli_sample", driver::bernoulli_sample_cases},
    {"categorical_sample", driver::categorical_sample_cases},
};

}  // namespace

int main(int count, char** arguments) {
  ptx::settings().knows_all_memory = true;
  std::string report;
  for (int i = 1; i < count; ++i) {
    const std::string word = arguments[i], next = i + 1 < count ? arguments[i + 1] : "";
    if (word == "--order") {
      ptx::settings().order = next == "mixed"        ? ptx::Order::mixed
                              : next == "descending" ? ptx::Order::descending
                                                     : ptx::Order::ascending;
      ++i;
    } else if (word == "--grid") {
      ptx::settings().largest_grid = static_cast<uint32_t>(std::stoul(next));
      ++i;
    } else if (word == "--report") {
      report = next;
      ++i;
    } else if (word == "planted") {
      planted::run(next);
      ++i;
    } else if (kCases.contains(word)) {
      kCases.at(word)();
    } else {
      std::fprintf(stderr, "no cases are called %s\n", word.c_str());
      return 2;
    }
  }
  std::printf("%d comparisons, %d failures\n", driver::comparisons, driver::failures);
  if (!report.empty()) {
    std::FILE* const to = std::fopen(report.c_str(), "w");
    if (to == nullptr) return 2;
    ptx::report(to);
    std::fclose(to);
  }
  return driver::failures == 0 ? 0 : 1;
}
