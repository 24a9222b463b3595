// Runs translated kernels: block after block, and in a block each thread to its next wait.
#pragma once

#include <cstdint>
#include <cstdio>
#include <vector>

namespace ptx {

// In which order the threads of a block, and the blocks of a grid, have their turns.
enum class Order { ascending, descending, mixed };

struct Settings {
  Order order = Order::ascending;
  uint64_t seed = 1;
  // Whether all memory that kernels may touch came from operator new, so that any other is an
  // error.
  bool knows_all_memory = false;
  // Whether each byte remembers who touched it; for counts alone that is not needed.
  bool finds_races = true;
  // No grid is larger than this; where it is low, blocks have to loop over what the grid does not
  // reach.
  uint32_t largest_grid = 2147483647;
};
Settings& settings();

// Returns false where a card would refuse the launch. What a kernel does wrong ends the process. An
// early launch may begin while the one before it runs, so its threads have to wait for the end of
// that one before they touch memory, and before they leave.
bool launch(const void* kernel, uint32_t blocks, uint32_t threads, uint64_t dynamic_bytes,
            bool early, const std::vector<char>& parameters);

// One line of JSON for each kernel: how often it was launched, and the instructions that were
// issued.
void report(std::FILE* to);
// Begins to count anew.
void forget();

constexpr int kFaultStatus = 3;

}  // namespace ptx
