// What the lanes of a warp do together.
#pragma once

#include "ptx/thread.h"

namespace ptx {

// The lanes that wait for one another go on, if all of them are there. Returns whether some did.
bool meet_in_warp(Thread* warp);

}  // namespace ptx
