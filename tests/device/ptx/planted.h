#pragma once

#include <string>

namespace planted {

// Launches a kernel with one fault, which ends the process, or its sound twin.
void run(const std::string& name);

}  // namespace planted
