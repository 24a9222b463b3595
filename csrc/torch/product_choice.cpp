#include "torch/product_choice.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>

#include "torch/products.h"

namespace fastvi {
namespace {

constexpr const char* kProducts[] = {"forward", "grad_input", "grad_weight"};
constexpr const char* kActivations[] = {"none", "relu", "tanh", "sigmoid", "gelu", "gelu_tanh"};

// Below this many multiplications oneDNN's call, some microseconds longer than MKL's, shows.
constexpr double kFewest = 1 << 20;
// More rows are multiplied in the same way.
constexpr int64_t kMostRows = 4096;

int64_t bracket(int64_t size) {
  return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size)));
}

ProductShape class_of(const ProductShape& shape) {
  return {shape.product, shape.activation, std::min(bracket(shape.rows), kMostRows),
          bracket(shape.in), bracket(shape.out)};
}

struct Before {
  bool operator()(const ProductShape& a, const ProductShape& b) const { return key(a) < key(b); }
  static std::tuple<Product, Activation, int64_t, int64_t, int64_t> key(const ProductShape& s) {
    return {s.product, s.activation, s.rows, s.in, s.out};
  }
};
using Choices = std::map<ProductShape, ProductChoice, Before>;

// ---- the file -----------------------------------------------------------------------------------
std::string processor() {
  std::ifstream cpu("/proc/cpuinfo");
  for (std::string line; std::getline(cpu, line);) {
    if (line.rfind("model name", 0) == 0) return line;
  }
  return "unknown";
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// One file for what decides about speed. Empty where there is no place for it.
std::string choices_file() {
  std::filesystem::path folder = variable("XDG_CACHE_HOME");
  if (!folder.is_absolute()) {
    folder = variable("HOME");
    if (!folder.is_absolute()) return "";
    folder /= ".cache";
  }
  const std::string machine =
      processor() + "|" + TORCH_VERSION + "|" + std::to_string(at::get_num_threads()) + "|" +
      variable("MKL_ENABLE_INSTRUCTIONS") + "|" + variable("ONEDNN_MAX_CPU_ISA") + "|" +
      variable("ATEN_CPU_CAPABILITY");
  uint64_t hash = 14695981039346656037u;  // FNV-1a: the same in every process
  for (const unsigned char c : machine) hash = (hash ^ c) * 1099511628211u;
  char name[40];
  std::snprintf(name, sizeof name, "products-%016llx.txt", static_cast<unsigned long long>(hash));
  return (folder / "fastvi" / name).string();
}

template <size_t n>
std::optional<int> number_of(const char* const (&names)[n], const std::string& name) {
  for (size_t i = 0; i < n; ++i) {
    if (name == names[i]) return static_cast<int>(i);
  }
  return std::nullopt;
}

// A choice is a line: product activation rows in out library seconds-of-torch seconds-of-oneDNN ;
std::optional<ProductChoice> read_line(const std::string& line) {
  std::istringstream words(line);
  std::string product, activation, library, end, more;
  ProductChoice choice;
  auto& least = choice.least;
  words >> product >> activation >> least.rows >> least.in >> least.out >> library >>
      choice.times.torch >> choice.times.onednn >> end;
  const auto kind = number_of(kProducts, product);
  const auto what = number_of(kActivations, activation);
  if (!words || end != ";" || words >> more || !kind || !what) return std::nullopt;
  if (library != "torch" && library != "onednn") return std::nullopt;
  least.product = static_cast<Product>(*kind);
  least.activation = static_cast<Activation>(*what);
  for (const int64_t size : {least.rows, least.in, least.out}) {
    if (size < 1 || bracket(size) != size) return std::nullopt;
  }
  if (!(choice.times.torch > 0 && choice.times.onednn > 0)) return std::nullopt;
  choice.onednn = library == "onednn";
  return choice;
}

// The first line about a class counts: what an older process has chosen. Others are passed over.
void read(const std::string& file, Choices* known) {
  constexpr size_t kLongest = 1 << 20;
  std::ifstream in(file);
  size_t taken = 0;
  for (std::string line; taken < kLongest && std::getline(in, line); taken += line.size() + 1) {
    if (const auto choice = read_line(line)) known->emplace(choice->least, *choice);
  }
}

// One write at the end of the file, so that no process waits for another, and none that is killed
// damages more than its own line.
void append(const std::string& file, const ProductChoice& choice) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(file).parent_path(), ignored);
  std::FILE* out = std::fopen(file.c_str(), "a");
  if (out == nullptr) return;
  const auto& least = choice.least;
  std::fprintf(out, "\n%s %s %lld %lld %lld %s %.3e %.3e ;\n", product_name(least.product),
               activation_name(least.activation), static_cast<long long>(least.rows),
               static_cast<long long>(least.in), static_cast<long long>(least.out),
               choice.onednn ? "onednn" : "torch", choice.times.torch, choice.times.onednn);
  std::fclose(out);
}

// ---- what is known ------------------------------------------------------------------------------
enum class Setting { automatic, torch, onednn };

Setting read_setting() {
  const std::string asked = variable("FASTVI_PRODUCTS");
  if (asked.empty() || asked == "auto") return Setting::automatic;
  if (asked == "torch") return Setting::torch;
  if (asked != "onednn") {
    throw std::invalid_argument("FASTVI_PRODUCTS: expected torch, onednn or auto, got " + asked);
  }
  if (!has_onednn()) throw std::invalid_argument("FASTVI_PRODUCTS: this torch has no oneDNN");
  return Setting::onednn;
}

struct State {
  std::mutex mutex;
  std::optional<Setting> setting;
  std::optional<std::string> file;
  Choices choices;
  ProductTimer timer;

  Setting chosen_setting() {
    if (!setting) setting = read_setting();
    return *setting;
  }
  void read_file() {
    if (file) return;
    file = choices_file();
    if (!file->empty()) read(*file, &choices);
  }
};

// Never destroyed: threads may multiply until the end, and the timer of a test may be Python's.
State& state() {
  static auto* all = new State;
  return *all;
}

}  // namespace

const char* product_name(Product product) { return kProducts[static_cast<int>(product)]; }
const char* activation_name(Activation activation) {
  return kActivations[static_cast<int>(activation)];
}
Activation activation_of(const std::string& name) {
  const auto number = number_of(kActivations, name);
  if (!number) throw std::invalid_argument("expected an activation, got " + name);
  return static_cast<Activation>(*number);
}

std::string product_setting() {
  auto& all = state();
  const std::lock_guard lock(all.mutex);
  constexpr const char* names[] = {"auto", "torch", "onednn"};
  return names[static_cast<int>(all.chosen_setting())];
}

bool product_by_onednn(const ProductShape& shape) {
  const double multiplications = static_cast<double>(shape.rows) * static_cast<double>(shape.in) *
                                 static_cast<double>(shape.out);
  if (multiplications < kFewest) return false;
  auto& all = state();
  const std::lock_guard lock(all.mutex);
  const Setting setting = all.chosen_setting();
  if (setting == Setting::torch || !has_onednn() || !at::globalContext().userEnabledMkldnn()) {
    return false;
  }
  if (setting == Setting::onednn) return true;
  // What a clock decides may differ between machines.
  if (at::globalContext().deterministicAlgorithms()) return false;
  all.read_file();
  const ProductShape least = class_of(shape);
  auto found = all.choices.find(least);
  if (found == all.choices.end()) {
    const ProductTimes times = all.timer ? all.timer(shape) : time_product(shape);
    const ProductChoice choice{least, times, is_clearly_faster(times)};
    // What a busy machine left open is for the next process to find out.
    if (!all.file->empty() && !std::isnan(times.torch)) {
      // Another process may have written its choice in the meantime.
      append(*all.file, choice);
      Choices written;
      read(*all.file, &written);
      if (const auto first = written.find(least); first != written.end()) {
        return all.choices.emplace(least, first->second).first->second.onednn;
      }
    }
    found = all.choices.emplace(least, choice).first;
  }
  return found->second.onednn;
}

std::vector<ProductChoice> product_choices() {
  auto& all = state();
  const std::lock_guard lock(all.mutex);
  all.read_file();
  std::vector<ProductChoice> list;
  for (const auto& [least, choice] : all.choices) list.push_back(choice);
  return list;
}

void restart_products(ProductTimer timer) {
  auto& all = state();
  const std::lock_guard lock(all.mutex);
  all.setting.reset();
  all.file.reset();
  all.choices.clear();
  all.timer = std::move(timer);
}

}  // namespace fastvi
