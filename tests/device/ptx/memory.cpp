#include "ptx/memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace ptx {
namespace {

thread_local int own_work = 0;

bool ordered(const Moment& before, const Moment& now, bool strong_read, const Blocks* blocks) {
  if (before.block != now.block)
    return blocks != nullptr && blocks->visible(before, now, strong_read);
  if (before.thread == now.thread || before.barriers < now.barriers) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_meetings < now.warp_meetings;
}

}  // namespace

OwnWork::OwnWork() { ++own_work; }
OwnWork::~OwnWork() { --own_work; }

bool note(Cell& cell, uint64_t stamp, const Moment& now, Access how, const Blocks* blocks) {
  if (cell.stamp != stamp) {
    cell = Cell{};
    cell.stamp = stamp;
  }
  const bool strong = how == Access::strong_read || how == Access::atomic;
  bool fine = !cell.written || (cell.written_by_atomic && strong) ||
              ordered(cell.writer, now, strong, blocks);
  if (how == Access::read || how == Access::strong_read) {
    const bool same =
        cell.read && cell.reader.block == now.block && cell.reader.thread == now.thread;
    const bool earlier =
        cell.read && cell.reader.block == now.block && cell.reader.barriers < now.barriers;
    cell.read_by_many = cell.read && !same && !earlier;
    cell.read = true;
    cell.reader = now;
    return fine;
  }
  if (cell.read && !(how == Access::atomic && cell.written_by_atomic)) {
    const bool earlier = cell.reader.block == now.block && cell.reader.barriers < now.barriers;
    fine = fine && (cell.read_by_many ? earlier : ordered(cell.reader, now, false, blocks));
  }
  cell.written = true;
  cell.written_by_atomic = how == Access::atomic;
  cell.writer = now;
  cell.read = cell.read_by_many = false;
  return fine;
}

void Blocks::clear() {
  fences_.clear();
  acquired_.clear();
  published_.clear();
}

void Blocks::fence(const Moment& now) {
  fences_[now.block][now.thread] = now.barriers;
  for (Acquired& one : acquired_[now.block]) {
    if (one.thread != now.thread || one.fenced) continue;
    one.fenced = true;
    one.fenced_at = now.barriers;
  }
}

void Blocks::atomic(const Moment& now, uint64_t address) {
  auto& here = published_[address];
  for (const auto& one : here)
    acquired_[now.block].push_back({one, now.thread, now.barriers, false, 0});
  Released mine;
  mine.block = now.block;
  for (const auto& [thread, barriers] : fences_[now.block]) {
    // Another thread's fence counts once a barrier has told this one.
    if (thread != now.thread && barriers >= now.barriers) continue;
    mine.own[thread] = barriers;
    mine.all_before = std::max(mine.all_before, barriers);
  }
  if (!mine.own.empty()) here.push_back(std::make_shared<Released>(std::move(mine)));
}

bool Blocks::visible(const Moment& writer, const Moment& now, bool strong_read) const {
  const auto mine = acquired_.find(now.block);
  if (mine == acquired_.end()) return false;
  const auto fences = fences_.find(now.block);
  const auto own_fence = [&](uint32_t after) {
    if (fences == fences_.end()) return false;
    const auto at = fences->second.find(now.thread);
    return at != fences->second.end() && at->second > after;
  };
  return std::any_of(mine->second.begin(), mine->second.end(), [&](const Acquired& one) {
    const Released& released = *one.released;
    const bool same = one.thread == now.thread;
    if (released.block != writer.block || (!same && one.barriers >= now.barriers)) return false;
    const bool told = one.fenced && (same || one.fenced_at < now.barriers);
    if (!told && !strong_read && (same || !own_fence(one.barriers))) return false;
    const auto own = released.own.find(writer.thread);
    return writer.barriers < released.all_before ||
           (own != released.own.end() && writer.barriers <= own->second);
  });
}

void Registry::add(const void* data, uint64_t size) {
  if (own_work > 0 || data == nullptr) return;
  const OwnWork work;
  ranges_[reinterpret_cast<uint64_t>(data)] = Range{size, {}};
}
void Registry::remove(const void* data) {
  if (own_work > 0 || data == nullptr) return;
  const OwnWork work;
  ranges_.erase(reinterpret_cast<uint64_t>(data));
}
Range* Registry::find(uint64_t address, uint64_t size, uint64_t* offset) {
  auto at = ranges_.upper_bound(address);
  if (at == ranges_.begin()) return nullptr;
  --at;
  *offset = address - at->first;
  if (*offset >= at->second.size || size > at->second.size - *offset) return nullptr;
  return &at->second;
}
Cell* Range::cell(uint64_t offset) {
  if (cells.empty()) {
    const OwnWork work;
    cells.resize(size);
  }
  return &cells[offset];
}
Registry& registry() {
  // Never destroyed: memory is given back until the very end.
  static Registry* const one = [] {
    const OwnWork work;
    return new Registry;
  }();
  return *one;
}

}  // namespace ptx

#ifdef PTX_KNOWS_ALL_MEMORY
void* operator new(std::size_t size) {
  void* const data = std::malloc(size > 0 ? size : 1);
  if (data == nullptr) throw std::bad_alloc();
  if (ptx::own_work == 0) ptx::registry().add(data, size);
  return data;
}
void* operator new[](std::size_t size) { return operator new(size); }
// The compiler takes malloc and delete for a pair that does not fit.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void operator delete(void* data) noexcept {
  if (ptx::own_work == 0) ptx::registry().remove(data);
  std::free(data);
}
void operator delete(void* data, std::size_t) noexcept { operator delete(data); }
void operator delete[](void* data) noexcept { operator delete(data); }
void operator delete[](void* data, std::size_t) noexcept { operator delete(data); }
#endif
