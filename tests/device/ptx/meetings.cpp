#include "ptx/meetings.h"

namespace ptx {
namespace {

constexpr uint32_t kWarp = 32;

// Which lane a shuffle reads, and whether that is inside its group: as the manual of PTX has it.
uint32_t source_lane(const Thread& t, bool* inside) {
  const uint32_t lane = t.thread % kWarp, with = t.argument & 31, segment = t.clamp >> 8 & 31;
  const uint32_t first = lane & segment, last = first | (t.clamp & 31 & ~segment);
  int64_t from = lane;
  switch (t.meeting) {
    case Meeting::up:
      from = static_cast<int64_t>(lane) - with;
      *inside = from >= last;
      break;
    case Meeting::down:
      from = lane + with;
      *inside = from <= last;
      break;
    case Meeting::bfly:
      from = lane ^ with;
      *inside = from <= last;
      break;
    default:
      from = first | (with & ~segment);
      *inside = from <= last;
  }
  return *inside ? static_cast<uint32_t>(from) : lane;
}

void meet(Thread* warp, uint32_t mask) {
  uint32_t truths = 0, given[kWarp];
  for (uint32_t i = 0; i < kWarp; ++i) {
    given[i] = warp[i].given;
    if ((mask >> i & 1) != 0 && given[i] != 0) truths |= 1u << i;
  }
  for (uint32_t i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) == 0) continue;
    Thread& t = warp[i];
    t.wait = Wait::nothing;
    switch (t.meeting) {
      case Meeting::sync:
        ++t.warp_meetings;
        break;
      case Meeting::all_of:
        t.flag = truths == mask;
        break;
      case Meeting::any_of:
        t.flag = truths != 0;
        break;
      case Meeting::uni_of:
        t.flag = truths == mask || truths == 0;
        break;
      case Meeting::ballot_of:
        t.result = truths;
        break;
      default: {
        const uint32_t from = source_lane(t, &t.flag);
        if ((mask >> from & 1) == 0) t.fail("a shuffle reads a lane that is not in its mask", from);
        t.result = given[from];
      }
    }
  }
}

}  // namespace

bool meet_in_warp(Thread* warp) {
  bool any = false;
  for (uint32_t i = 0; i < kWarp; ++i) {
    const Thread& t = warp[i];
    if (t.wait != Wait::lanes) continue;
    for (uint32_t j = 0; j < kWarp; ++j) {
      if ((t.mask >> j & 1) == 0) continue;
      const Thread& other = warp[j];
      if (other.wait == Wait::left) t.fail("a lane waits for one that has left", j);
      if (other.wait == Wait::barrier) t.fail("a lane waits for one that waits at a barrier", j);
      if (other.place != t.place) t.fail("lanes of a warp meet at different instructions", j);
      if (other.mask != t.mask) t.fail("lanes that meet name different masks", other.mask);
    }
    meet(warp, t.mask);
    any = true;
  }
  return any;
}

}  // namespace ptx
