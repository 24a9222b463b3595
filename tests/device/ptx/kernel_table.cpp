#include "ptx/kernel_table.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "ptx/machine.h"
#include "ptx/memory.h"

namespace ptx {

std::string demangled(const char* name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  // The compilers of host and device differ in spaces and in the names of unnamed namespaces.
  const std::string unnamed = "(anonymous namespace)::";
  for (size_t at; (at = result.find(unnamed)) != std::string::npos;)
    result.erase(at, unnamed.size());
  result.erase(std::remove(result.begin(), result.end(), ' '), result.end());
  return result;
}

namespace {

constexpr uint32_t kWarp = 32;

std::map<std::string, Known>& kernels() {
  static auto* const all = new std::map<std::string, Known>;
  return *all;
}

}  // namespace

Known& kernel_at(const void* function) {
  static std::map<const void*, Known*> found;
  if (const auto at = found.find(function); at != found.end()) return *at->second;
  static const auto symbols = [] {
    std::map<uint64_t, std::string> result;
    Dl_info here{};
    dladdr(reinterpret_cast<const void*>(&settings), &here);
    const std::string command = std::string("nm --defined-only '") + here.dli_fname + "'";
    std::FILE* const nm = popen(command.c_str(), "r");
    char line[16384], name[16384], kind = 0;
    unsigned long long address = 0;
    std::vector<std::pair<uint64_t, std::string>> all;
    uint64_t origin = 0;
    while (nm != nullptr && std::fgets(line, sizeof(line), nm) != nullptr) {
      if (std::sscanf(line, "%llx %c %16383s", &address, &kind, name) != 3) continue;
      if (std::strcmp(name, "_ZN3ptx8settingsEv") == 0)
        origin = reinterpret_cast<uint64_t>(&settings) - address;
      if (std::strchr("tTwW", kind) != nullptr) all.emplace_back(address, name);
    }
    if (nm != nullptr) pclose(nm);
    for (auto& [offset, text] : all) result[offset + origin] = std::move(text);
    return result;
  }();
  const auto symbol = symbols.find(reinterpret_cast<uint64_t>(function));
  const std::string name = symbol == symbols.end() ? "?" : demangled(symbol->second.c_str());
  const auto known = kernels().find(name);
  if (known == kernels().end()) {
    std::fprintf(stderr, "ptx: no PTX of the kernel %s\n", name.c_str());
    std::_Exit(kFaultStatus);
  }
  return *(found[function] = &known->second);
}

Kernel::Kernel(const char* name_, void (*run_)(Thread&), uint64_t state, uint64_t parameter,
               uint64_t shared, uint64_t local, uint32_t most, const uint32_t* lengths_,
               uint32_t stretches_)
    : name(name_),
      run(run_),
      state_bytes(state),
      parameter_bytes(parameter),
      shared_bytes(shared),
      local_bytes(local),
      most_threads(most),
      lengths(lengths_),
      stretches(stretches_) {
  const auto [at, is_new] = kernels().try_emplace(demangled(name), Known{this, {}});
  at->second.counts.visits.resize(stretches);
  // A template that two sources use is the same code; unnamed namespaces may hide two that are not.
  if (!is_new && std::strcmp(at->second.kernel->name, name) != 0) {
    std::fprintf(stderr, "ptx: two kernels are called %s\n", at->first.c_str());
    std::_Exit(kFaultStatus);
  }
}
Table::Table(const void* data, uint64_t size) { registry().add(data, size); }

void count(Counts& counts, const Kernel& kernel, const std::vector<uint32_t>& visits,
           uint32_t threads) {
  for (uint32_t warp = 0; warp < threads; warp += kWarp) {
    for (uint32_t s = 0; s < kernel.stretches; ++s) {
      uint64_t sum = 0;
      uint32_t most = 0;
      for (uint32_t i = warp; i < warp + kWarp; ++i) {
        const uint32_t n = visits[uint64_t{i} * kernel.stretches + s];
        sum += n;
        most = std::max(most, n);
      }
      counts.executed += sum * kernel.lengths[s];
      counts.issued += uint64_t{most} * kWarp * kernel.lengths[s];
      counts.visits[s] += uint64_t{most} * kWarp;
    }
  }
}

void report(std::FILE* to) {
  for (const auto& [name, known] : kernels()) {
    const Counts& c = known.counts;
    std::fprintf(to,
                 "{\"kernel\": \"%s\", \"launches\": %llu, \"early\": %llu, \"blocks\": %llu, "
                 "\"threads\": %llu, ",
                 known.kernel->name, static_cast<unsigned long long>(c.launches),
                 static_cast<unsigned long long>(c.early),
                 static_cast<unsigned long long>(c.blocks),
                 static_cast<unsigned long long>(c.threads));
    std::fprintf(to, "\"executed\": %llu, \"issued\": %llu, \"visits\": [",
                 static_cast<unsigned long long>(c.executed),
                 static_cast<unsigned long long>(c.issued));
    for (size_t i = 0; i < c.visits.size(); ++i) {
      std::fprintf(to, "%s%llu", i > 0 ? ", " : "", static_cast<unsigned long long>(c.visits[i]));
    }
    std::fprintf(to, "]}\n");
  }
}

void forget() {
  for (auto& [name, known] : kernels()) {
    known.counts = Counts{};
    known.counts.visits.resize(known.kernel->stretches);
  }
}

}  // namespace ptx
