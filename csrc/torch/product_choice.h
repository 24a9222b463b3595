// Which of torch's libraries multiplies: torch's own (MKL, OpenBLAS) or oneDNN, by a measurement of
// each class of shapes. A choice is made once, kept for the process, and written to a file of the
// user's cache, so that later processes on this machine choose alike, and round alike.
// FASTVI_PRODUCTS (torch, onednn, auto) forces one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fastvi {

// The products of a Linear, of rows [rows, in] and a weight [out, in].
enum class Product { forward, grad_input, grad_weight };
// What follows the product at once. GELU by the error function, or by its approximation.
enum class Activation { none, relu, tanh, sigmoid, gelu, gelu_tanh };

const char* product_name(Product product);
const char* activation_name(Activation activation);
Activation activation_of(const std::string& name);  // throws std::invalid_argument

struct ProductShape {
  Product product;
  Activation activation;  // none, except for `forward`
  int64_t rows, in, out;
};
struct ProductTimes {
  double torch, onednn;  // seconds; NaN where that was left open, which takes torch's library
};
// Whether oneDNN is faster by more than noise.
inline bool is_clearly_faster(const ProductTimes& times) {
  return times.onednn * 1.1 < times.torch;
}
struct ProductChoice {
  ProductShape least;  // of the class: its sizes are below twice these, rows above the last without
  ProductTimes times;
  bool onednn;
};
using ProductTimer = std::function<ProductTimes(const ProductShape&)>;

// "torch", "onednn" or "auto". Throws std::invalid_argument where the variable says something else,
// or onednn where torch has none.
std::string product_setting();
// Whether oneDNN multiplies float32 tensors of a CPU.
bool product_by_onednn(const ProductShape& shape);
// All choices that are known, by an older process too.
std::vector<ProductChoice> product_choices();
// For tests: forget all choices, read the environment again, and measure by another clock.
void restart_products(ProductTimer timer);

}  // namespace fastvi
