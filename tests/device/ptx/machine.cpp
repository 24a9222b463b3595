#include "ptx/machine.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <utility>

#include "ptx/kernel_table.h"
#include "ptx/meetings.h"
#include "ptx/memory.h"

namespace ptx {
namespace {

constexpr uint32_t kWarp = 32;

struct Grid {
  const Kernel* kernel = nullptr;
  std::vector<char> parameters;
  uint64_t shared_bytes = 0, dynamic_bytes = 0, dynamic_begin = 0, launch = 0;
  // The block at work.
  uint32_t barriers = 0;
  uint64_t stamp = 0;  // of the block
  char* shared = nullptr;
  std::vector<Cell> shared_cells;
  Blocks blocks;
} grid;

Moment moment(const Thread& t) { return {t.block, t.thread, grid.barriers, t.warp_meetings}; }

bool on_the_stack(uint64_t address) {
  static const std::pair<uint64_t, uint64_t> stack = [] {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t size = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &begin, &size);
    pthread_attr_destroy(&attributes);
    return std::pair(reinterpret_cast<uint64_t>(begin), reinterpret_cast<uint64_t>(begin) + size);
  }();
  return address >= stack.first && address < stack.second;
}

}  // namespace

Settings& settings() {
  static Settings one;
  return one;
}

void Thread::fail(const char* what, uint64_t number) const {
  std::fflush(stdout);
  std::fprintf(stderr, "ptx: %s (%llx), thread %u of block %u, in %s\n", what,
               static_cast<unsigned long long>(number), thread, block,
               demangled(grid.kernel->name).c_str());
  std::_Exit(kFaultStatus);
}

char* Thread::global(uint64_t address, uint32_t size, Access how) {
  if (early) fail("an access of global memory before a wait for the launch before", address);
  if (address % size != 0) fail("an access of global memory is not aligned", address);
  uint64_t offset = 0;
  Range* const range = registry().find(address, size, &offset);
  if (range == nullptr) {
    if (settings().knows_all_memory && !on_the_stack(address))
      fail("an access beyond every array", address);
    return reinterpret_cast<char*>(address);
  }
  for (uint32_t i = 0; i < size && settings().finds_races; ++i) {
    if (!note(*range->cell(offset + i), grid.launch, moment(*this), how, &grid.blocks)) {
      fail("a race on global memory", address);
    }
  }
  if (how == Access::atomic) grid.blocks.atomic(moment(*this), address);
  return reinterpret_cast<char*>(address);
}

char* Thread::shared(uint64_t address, uint32_t size, Access how) {
  if (address % size != 0) fail("an access of shared memory is not aligned", address);
  if (address + size > grid.shared_bytes) fail("an access beyond shared memory", address);
  for (uint32_t i = 0; i < size; ++i) {
    Cell& cell = grid.shared_cells[address + i];
    const bool filled = cell.stamp == grid.stamp && cell.written;
    if (how != Access::write && !filled)
      fail("a read of shared memory that no thread has written", address);
    if (!note(cell, grid.stamp, moment(*this), how, nullptr))
      fail("a race on shared memory", address);
  }
  return grid.shared + address;
}

char* Thread::local(uint64_t address, uint32_t size, Access) {
  if (address % size != 0) fail("an access of local memory is not aligned", address);
  if (address + size > grid.kernel->local_bytes) fail("an access beyond local memory", address);
  return local_memory + address;
}

char* Thread::param(uint64_t address, uint32_t size, Access how) {
  const uint64_t begin = parameter_address(0);
  if (address % size != 0) fail("an access of a parameter is not aligned", address - begin);
  if (address < begin || address + size > begin + grid.kernel->parameter_bytes) {
    fail("an access beyond the parameters", address - begin);
  }
  if (how != Access::read) fail("a write to a parameter", address - begin);
  return reinterpret_cast<char*>(address);
}

char* Thread::generic(uint64_t address, uint32_t size, Access how) {
  const auto inside = [&](const void* begin, uint64_t bytes) {
    return address >= reinterpret_cast<uint64_t>(begin) &&
           address < reinterpret_cast<uint64_t>(begin) + bytes;
  };
  if (inside(grid.shared, grid.shared_bytes)) return shared(to_generic_shared(address), size, how);
  if (inside(local_memory, grid.kernel->local_bytes))
    return local(to_generic_local(address), size, how);
  if (inside(grid.parameters.data(), grid.parameters.size())) return param(address, size, how);
  return global(address, size, how);
}

uint64_t Thread::parameter_address(uint64_t offset) const {
  return reinterpret_cast<uint64_t>(grid.parameters.data()) + offset;
}
uint64_t Thread::dynamic_shared() const { return grid.dynamic_begin; }
uint64_t Thread::generic_shared(uint64_t offset) const {
  return reinterpret_cast<uint64_t>(grid.shared) + offset;
}
uint64_t Thread::generic_local(uint64_t offset) const {
  return reinterpret_cast<uint64_t>(local_memory) + offset;
}
uint64_t Thread::to_generic_shared(uint64_t address) const {
  return address - reinterpret_cast<uint64_t>(grid.shared);
}
uint64_t Thread::to_generic_local(uint64_t address) const {
  return address - reinterpret_cast<uint64_t>(local_memory);
}

void Thread::fence() { grid.blocks.fence(moment(*this)); }

void Thread::together(Meeting what, uint32_t value, uint32_t with, uint32_t within,
                      uint32_t lanes) {
  meeting = what;
  given = value, argument = with, clamp = within, mask = lanes;
  wait = Wait::lanes;
  if ((mask >> thread % kWarp & 1) == 0) fail("a lane is not in the mask that it names", mask);
}

namespace {

void pass_barrier(std::vector<Thread>& threads) {
  uint32_t waiting = 0;
  for (const Thread& t : threads) waiting += t.wait == Wait::barrier;
  if (waiting == 0) return;
  for (Thread& t : threads) {
    if (t.wait == Wait::left) t.fail("left a block whose others wait at a barrier", waiting);
    if (t.place != threads[0].place)
      t.fail("threads of a block wait at different barriers", waiting);
    t.wait = Wait::nothing;
  }
  ++grid.barriers;
}

class Turns {
 public:
  explicit Turns(uint32_t size) : order_(size) {
    for (uint32_t i = 0; i < size; ++i)
      order_[i] = settings().order == Order::descending ? size - 1 - i : i;
  }
  const std::vector<uint32_t>& next() {
    static std::mt19937_64 random(settings().seed);
    if (settings().order == Order::mixed) std::shuffle(order_.begin(), order_.end(), random);
    return order_;
  }

 private:
  std::vector<uint32_t> order_;
};

}  // namespace

bool launch(const void* function, uint32_t blocks, uint32_t threads, uint64_t dynamic_bytes,
            bool early, const std::vector<char>& parameters) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard lock(one_launch_at_a_time);
  const OwnWork work;
  Known& known = kernel_at(function);
  const Kernel& kernel = *known.kernel;
  if (blocks == 0 || blocks > 2147483647u || threads == 0 || threads > kernel.most_threads ||
      threads % kWarp != 0 || kernel.shared_bytes + dynamic_bytes > 227 * 1024) {
    return false;
  }
  blocks = std::min(blocks, settings().largest_grid);
  static uint64_t launches = 0, stamps = 0;
  grid.kernel = &kernel;
  grid.parameters = parameters;
  if (parameters.size() < kernel.parameter_bytes) {
    std::fprintf(stderr, "ptx: %s takes %llu bytes of parameters, and got %zu\n",
                 known.kernel->name, static_cast<unsigned long long>(kernel.parameter_bytes),
                 parameters.size());
    std::_Exit(kFaultStatus);
  }
  grid.launch = ++launches;
  grid.blocks.clear();
  grid.dynamic_begin = (kernel.shared_bytes + 15) / 16 * 16;
  grid.shared_bytes = dynamic_bytes > 0 ? grid.dynamic_begin + dynamic_bytes : kernel.shared_bytes;
  std::vector<char> shared(grid.shared_bytes + 128);
  grid.shared =
      reinterpret_cast<char*>((reinterpret_cast<uint64_t>(shared.data()) + 127) / 128 * 128);
  grid.shared_cells.assign(grid.shared_bytes, Cell{});

  const uint64_t state_bytes = (kernel.state_bytes + 63) / 64 * 64;
  std::vector<char> states(state_bytes * threads + 64);
  char* const first =
      reinterpret_cast<char*>((reinterpret_cast<uint64_t>(states.data()) + 63) / 64 * 64);
  std::vector<uint32_t> visits(uint64_t{threads} * kernel.stretches);
  std::vector<Thread> of_block(threads);
  Turns block_turns(blocks), thread_turns(threads);
  ++known.counts.launches;
  known.counts.early += early;
  for (const uint32_t block : block_turns.next()) {
    // Nothing is kept from another block: registers and shared memory begin as rubbish.
    std::memset(states.data(), 0xcd, states.size());
    std::memset(grid.shared, 0xff, grid.shared_bytes);
    std::fill(visits.begin(), visits.end(), 0);
    grid.barriers = 0;
    grid.stamp = ++stamps;
    for (uint32_t i = 0; i < threads; ++i) {
      Thread t{i, block, threads, blocks};
      t.early = early;
      t.state = first + state_bytes * i;
      t.visits = visits.data() + uint64_t{i} * kernel.stretches;
      of_block[i] = t;
    }
    for (uint32_t left = 0; left < threads;) {
      for (const uint32_t i : thread_turns.next()) {
        if (of_block[i].wait == Wait::nothing) kernel.run(of_block[i]);
      }
      bool any = false;
      for (uint32_t warp = 0; warp < threads; warp += kWarp) any |= meet_in_warp(&of_block[warp]);
      left = 0;
      for (const Thread& t : of_block) left += t.wait == Wait::left;
      if (!any && left < threads) pass_barrier(of_block);
    }
    count(known.counts, kernel, visits, threads);
    ++known.counts.blocks;
    known.counts.threads += threads;
  }
  return true;
}

}  // namespace ptx
