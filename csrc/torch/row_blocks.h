// Rows of a CPU's work in blocks that stay in its caches from one step to the next, each block one
// thread's: no thread waits for another between the steps.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <algorithm>
#include <cstdint>

#include "torch/launch.h"

namespace fastvi {

// What the widest step makes of a block: half of the second level's cache, and more.
constexpr int64_t kThreadBlockBytes = int64_t{1} << 20;

// How many rows a block has, of rows of so many bytes, or 0 where there are fewer blocks than
// threads: then all threads had better work on each step. Each thread has as many blocks as others.
inline int64_t rows_of_thread_block(int64_t rows, int64_t row_bytes) {
  if (at::in_parallel_region()) return 0;
  const int64_t threads = at::get_num_threads();
  const int64_t most = std::max<int64_t>(1, kThreadBlockBytes / std::max<int64_t>(1, row_bytes));
  const int64_t blocks = ceil_div(rows, most);
  if (blocks < threads) return 0;
  return ceil_div(rows, ceil_div(blocks, threads) * threads);
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
