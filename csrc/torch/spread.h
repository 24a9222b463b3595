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

}  // namespace fastvi
