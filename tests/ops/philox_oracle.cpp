// Prints the four Philox words of each line "seed subsequence offset" of the standard input, by the
// engine of torch: the counter is (offset low, offset high, subsequence low, subsequence high).
#include <ATen/core/PhiloxRNGEngine.h>

#include <cstdint>
#include <iostream>

int main() {
  uint64_t seed, subsequence, offset;
  while (std::cin >> seed >> subsequence >> offset) {
    at::Philox4_32 engine(seed, subsequence);
    engine.set_offset(offset);
    for (int i = 0; i < 4; ++i) std::cout << engine() << (i < 3 ? ' ' : '\n');
  }
}
