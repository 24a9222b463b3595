// Who touched each byte last, and which memory is whose.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "ptx/thread.h"

namespace ptx {

// A thread at a time of its block: barriers passed, and meetings of its warp.
struct Moment {
  uint32_t block = 0, thread = 0, barriers = 0, warp_meetings = 0;
};

// The last write of a byte, and its last reads, in the launch and the block of `stamp`.
struct Cell {
  uint64_t stamp = 0;
  Moment writer, reader;
  bool written = false, written_by_atomic = false, read = false, read_by_many = false;
};

// What a block has made visible to all blocks by a fence: the writes before `all_before` barriers,
// and those of single threads up to a moment of their own.
struct Released {
  uint32_t block = 0, all_before = 0;
  std::unordered_map<uint32_t, uint32_t> own;
};
// That, seen by a thread of another block by an atomic instruction. It has to fence in its turn,
// before a barrier tells others, or they do behind it.
struct Acquired {
  std::shared_ptr<const Released> released;
  uint32_t thread = 0, barriers = 0;
  bool fenced = false;
  uint32_t fenced_at = 0;
};

class Blocks {
 public:
  void clear();
  void fence(const Moment& now);
  void atomic(const Moment& now, uint64_t address);
  bool visible(const Moment& writer, const Moment& now, bool strong_read) const;

 private:
  std::unordered_map<uint32_t, std::unordered_map<uint32_t, uint32_t>>
      fences_;                                                    // of block and thread
  std::unordered_map<uint32_t, std::vector<Acquired>> acquired_;  // by block
  std::unordered_map<uint64_t, std::vector<std::shared_ptr<const Released>>> published_;
};

// Notes an access; false where nothing orders it behind what it meets.
bool note(Cell& cell, uint64_t stamp, const Moment& now, Access how, const Blocks* blocks);

// What operator new has handed out, with the cells of its bytes once a kernel touched them.
struct Range {
  uint64_t size = 0;
  std::vector<Cell> cells;
  Cell* cell(uint64_t offset);
};
class Registry {
 public:
  void add(const void* data, uint64_t size);
  void remove(const void* data);
  // The range that holds all of these bytes, or nullptr.
  Range* find(uint64_t address, uint64_t size, uint64_t* offset);

 private:
  std::map<uint64_t, Range> ranges_;
};
Registry& registry();

// While one lives, memory that is asked for is the machine's own, and none of the kernels'.
struct OwnWork {
  OwnWork();
  ~OwnWork();
};

}  // namespace ptx
