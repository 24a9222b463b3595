#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>

#include "maths/spread.h"

namespace fastvi {

inline SpreadKind spread_kind_of(const char* op, c10::string_view kind) {
  if (kind == "scale") return SpreadKind::scale;
  if (kind == "log_scale") return SpreadKind::log_scale;
  TORCH_CHECK_VALUE(kind == "log_var", op,
                    ": expected kind to be scale, log_scale or log_var, got ", kind);
  return SpreadKind::log_var;
}

// The parameters of a kernel whose spread is given in some way.
template <class Params>
Params params_of_spread(const char* op, c10::string_view kind) {
  Params p{};
  p.spread_kind = spread_kind_of(op, kind);
  return p;
}

}  // namespace fastvi
