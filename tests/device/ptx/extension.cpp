// What Python asks of the machine in an extension that runs on it, by ctypes.
#include <cstdlib>
#include <string>

#include "ptx/kernel_table.h"
#include "ptx/machine.h"

#define PTX_PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

// FASTVI_PTX_ORDER=mixed gives threads and blocks their turns by chance.
[[maybe_unused]] const bool kAsked = [] {
  const char* const order = std::getenv("FASTVI_PTX_ORDER");
  if (order != nullptr && std::string(order) == "mixed") ptx::settings().order = ptx::Order::mixed;
  return true;
}();

}  // namespace

PTX_PUBLIC void ptx_forget() { ptx::forget(); }

PTX_PUBLIC int ptx_report(const char* path) {
  std::FILE* const to = std::fopen(path, "w");
  if (to == nullptr) return 1;
  ptx::report(to);
  return std::fclose(to);
}
