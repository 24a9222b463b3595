// Rows of a CPU's work in blocks that stay in its caches from one step to the next, each block one
// thread's: no thread waits for another between the steps.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <algorithm>
#include <cstdint>

#include "torch/launch.h"

namespace fastvi {

// The most rows, of so many bytes, that stay in a core's second-level cache from one step to the
// next; or 0 where they are too few for a product to run at its full speed, and where the threads
// are at work already: then all threads had better take each step together.
inline int64_t rows_in_cache(int64_t row_bytes) {
  constexpr int64_t kBytes = int64_t{1} << 20, kLeastRows = 128;
  const int64_t rows = kBytes / std::max<int64_t>(1, row_bytes);
  return rows < kLeastRows || at::in_parallel_region() ? 0 : rows;
}

// A number of blocks that all threads have alike many of, not below `blocks`.
inline int64_t blocks_for_threads(int64_t blocks) {
  const int64_t threads = at::get_num_threads();
  return ceil_div(blocks, threads) * threads;
}
// Whether so many blocks leave at most a quarter of the threads' time unused.
inline bool keep_threads_busy(int64_t blocks) {
  return 4 * blocks >= 3 * blocks_for_threads(blocks);
}

// use(block, thread) for each block, by the threads where that is wanted. What torch keeps for a
// thread, such as the modes of autograd, is in all of them what it is in the caller.
template <class Use>
void for_each_block(int64_t blocks, bool by_threads, Use use) {
  if (!by_threads) {
    for (int64_t block = 0; block < blocks; ++block) use(block, int64_t{0});
    return;
  }
  const at::ThreadLocalState state;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const at::ThreadLocalStateGuard as_in_the_caller(state);
    for (int64_t block = begin; block < end; ++block) use(block, int64_t{at::get_thread_num()});
  });
}

}  // namespace fastvi
