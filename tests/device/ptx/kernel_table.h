// The translated kernels by name, and what each of them did.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ptx/thread.h"

namespace ptx {

struct Counts {
  uint64_t launches = 0, blocks = 0, threads = 0;
  uint64_t early = 0;     // launches that might begin while the one before runs
  uint64_t executed = 0;  // instructions, each by its own thread
  uint64_t issued = 0;    // and by all lanes of a warp, where one of them had to
  std::vector<uint64_t> visits;
};
struct Known {
  const Kernel* kernel;
  Counts counts;
};

// A name as C++ has it, without what compilers of host and device write differently.
std::string demangled(const char* name);

// The kernel whose host function lies at an address, by the symbols of the file that holds it.
Known& kernel_at(const void* function);

// Adds what a block did; `visits` has the stretches of its threads, one thread behind another.
void count(Counts& counts, const Kernel& kernel, const std::vector<uint32_t>& visits,
           uint32_t threads);

}  // namespace ptx
