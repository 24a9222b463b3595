#include "torch/empty.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastvi {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
// Smaller ones the heap has at hand.
constexpr size_t kSmallest = 2 * kMiB;
// What is kept for later, all blocks together, is at most this.
constexpr size_t kKept = 64 * kMiB;
constexpr size_t kHugePage = 2 * kMiB;

struct Block {
  void* data;
  size_t bytes;
};

Block fresh_block(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* data = nullptr;
  const bool failed = posix_memalign(&data, kHugePage, bytes) != 0;
  TORCH_CHECK_WITH(OutOfMemoryError, !failed, "fastvi: expected ", bytes,
                   " bytes of memory for a result, got none");
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // It is advice: where the system does not take it, nothing is lost.
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return {data, bytes};
}

// The blocks that nobody uses at the moment, oldest first.
class KeptBlocks {
 public:
  Block take(size_t bytes) {
    // A lock that is held is not waited for: a process forked at that moment never sees it free.
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) {
      size_t best = free_.size();
      for (size_t i = 0; i < free_.size(); ++i) {
        const size_t room = free_[i].bytes;
        if (room < bytes || room > bytes + bytes / 4 + kHugePage) continue;
        if (best == free_.size() || room < free_[best].bytes) best = i;
      }
      if (best != free_.size()) return remove(best);
    }
    return fresh_block(bytes);
  }

  void give_back(const Block& block) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > kKept) return std::free(block.data);
    free_.push_back(block);
    total_ += block.bytes;
    while (total_ > kKept) std::free(remove(0).data);
  }

  void release() {
    const std::lock_guard lock(mutex_);
    while (!free_.empty()) std::free(remove(0).data);
  }

 private:
  Block remove(size_t i) {
    const Block block = free_[i];
    free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
    total_ -= block.bytes;
    return block;
  }

  std::mutex mutex_;
  std::vector<Block> free_;
  size_t total_ = 0;
};

// Never destroyed: a tensor may outlive every other static object.
KeptBlocks& kept_blocks() {
  static auto* blocks = new KeptBlocks;
  return *blocks;
}

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data);
  kept_blocks().give_back(*block);
  delete block;
}

class LargeAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block(kept_blocks().take(bytes));
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return {block->data, block, &free_block, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes =
      static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (!options.device().is_cpu() || bytes < kSmallest) return at::empty(sizes, options);
  static LargeAllocator allocator;
  return at::Tensor(
      at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                c10::typeMetaToScalarType(options.dtype()), std::nullopt));
}

void release_kept_memory() { kept_blocks().release(); }

}  // namespace fastvi
