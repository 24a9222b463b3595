#!/usr/bin/env bash
# Build, test and benchmark on a machine with a CUDA card, in one command of at most ten minutes.
#
#   bash benchmarks/gpu.sh [--cpu] [arguments for python -m benchmarks]
#
# Nothing is downloaded or installed: python3 must have torch with CUDA, pybind11, ninja and cmake, and
# nvcc must be there. fastvi is built in this folder. Without pytest the tests are left out, without
# matplotlib the charts. --cpu goes through the same phases without a card, and does not build.
#
#   OUT     rows and chart, and the logs too   (benchmarks/results, logs in build/gpu)
#   PYTHON  the interpreter                    (python3)
#   ARCH    what to build for, such as 9.0     (the card's own; TORCH_CUDA_ARCH_LIST is not asked: where
#                                              torch was built it names all that torch was built for)
#   TESTS   what of the suite to run           (tests)
#   MOST    the largest K of a training step   (100000 on a card, 100 without)
#   TOTAL   seconds for all of it              (570)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEVICE=cuda
if [[ "${1:-}" == --cpu ]]; then
  DEVICE=cpu
  shift
fi
PYTHON=${PYTHON:-python3}
TESTS=${TESTS:-tests}
TOTAL=${TOTAL:-570}
LOGS=${OUT:-build/gpu}
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT" "$LOGS"
export PYTHONUNBUFFERED=1
# Tests run from other folders too, and another fastvi may be installed.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# The interpreter's own programs come first; toolkits may lie where the PATH does not look.
SCRIPTS=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
export PATH="$SCRIPTS:$PATH:/usr/local/cuda/bin"
SUMMARY="$LOGS/summary.txt"
: >"$SUMMARY"
FAILED=0

left() { echo $((TOTAL - SECONDS)); }

at_most() { # at_most SECONDS RESERVED: the seconds, or what is left beside those reserved for others
  local free=$(($(left) - $2))
  echo $((free < $1 ? free : $1))
}

conclude() { # conclude PHASE OUTCOME DETAIL
  printf '%-10s %-8s %4d s  %s\n' "$1" "$2" "$SECONDS" "$3" | tee -a "$SUMMARY"
}

phase() { # phase NAME LIMIT LOG COMMAND...: run it under the limit, log it, and conclude
  local name=$1 limit=$2 log=$LOGS/$3 code
  shift 3
  if ((limit < 10)); then
    conclude "$name" skipped "no time left"
    FAILED=1
    return 1
  fi
  printf '\n== %s, at most %d s: %s\n' "$name" "$limit" "$*"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$log"
  code=${PIPESTATUS[0]}
  if ((code == 0)); then
    conclude "$name" ok "$(tail -n 1 "$log")"
  elif ((code == 124 || code == 137)); then
    conclude "$name" "TIMEOUT" "after $limit s, see $log"
    FAILED=1
  else
    conclude "$name" FAILED "exit code $code, see $log"
    FAILED=1
  fi
  return "$code"
}

finish() {
  printf '\n== summary\n'
  cat "$SUMMARY"
  printf 'rows, chart: %s   logs: %s\n' "$OUT" "$LOGS"
  exit "$FAILED"
}

rm -f "$LOGS"/{build,device,suite,benchmark,large_k,sanitizer}.log

if [[ $DEVICE == cuda ]]; then
  nvidia-smi || true
  "$PYTHON" -c 'import torch; torch.zeros(1, device="cuda")' || {
    conclude card FAILED "torch sees no CUDA card"
    FAILED=1
    finish
  }
  TORCH_CUDA_ARCH_LIST=${ARCH:-$("$PYTHON" -c \
    'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')}
  export TORCH_CUDA_ARCH_LIST FASTVI_CUDA=1
  # In place: pip refuses to install for the interpreter of a distribution.
  phase build "$(at_most 180 380)" build.log "$PYTHON" setup.py -q build_ext --inplace || finish
fi
"$PYTHON" -c 'import fastvi' || {
  conclude import FAILED "fastvi does not import"
  FAILED=1
  finish
}

if "$PYTHON" -c 'import pytest' 2>/dev/null; then
  # One process: the tensors of more than 2^31 elements want the card for themselves.
  phase device "$(at_most 90 330)" device.log "$PYTHON" -m pytest -p no:cacheprovider \
    tests/device/test_cuda_device.py tests/device/test_cuda_large.py

  PARALLEL=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    PARALLEL=(-n "$(($(nproc) > 8 ? 8 : $(nproc)))" --dist=loadfile --no-loadscope-reorder)
  fi
  phase suite "$(at_most 200 270)" suite.log "$PYTHON" -m pytest -p no:cacheprovider \
    ${PARALLEL[@]+"${PARALLEL[@]}"} --ignore=tests/device/test_cuda_device.py \
    --ignore=tests/device/test_cuda_large.py "$TESTS"
else
  conclude device skipped "pytest is not in this environment"
  conclude suite skipped "pytest is not in this environment"
fi

# The last case begun, the table and the chart come after its budget.
LIMIT=$(at_most 240 110)
phase benchmark "$LIMIT" benchmark.log "$PYTHON" -m benchmarks --device "$DEVICE" --out "$OUT" \
  --budget "$((LIMIT > 60 ? LIMIT - 40 : 20))" "$@"

# Training steps against K: short ones, each in a process of its own.
phase large-k "$(at_most 60 45)" large_k.log "$PYTHON" -m benchmarks.large_k --device "$DEVICE" \
  --out "$OUT" --most "${MOST:-$([[ $DEVICE == cuda ]] && echo 100000 || echo 100)}"

# Not in torch's cached blocks, where an access past the end of a tensor would not be seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
if [[ $DEVICE == cpu ]]; then
  phase checks "$(at_most 60 5)" sanitizer.log env "PYTHONPATH=tests/support:$PYTHONPATH" \
    "$PYTHON" -m benchmarks.gpu_checks --device cpu --seconds 20
elif ! command -v compute-sanitizer >/dev/null; then
  conclude sanitizer skipped "compute-sanitizer is not on this machine"
else
  for tool in memcheck racecheck; do
    LIMIT=$(at_most 70 $([[ $tool == memcheck ]] && echo 40 || echo 5))
    # The sanitizer refuses some virtual machines: that says nothing about the kernels.
    phase "$tool" "$LIMIT" sanitizer.log env "PYTHONPATH=tests/support:$PYTHONPATH" compute-sanitizer --tool "$tool" \
      --error-exitcode 99 "$PYTHON" -m benchmarks.gpu_checks --seconds "$((LIMIT / 2))"
    grep -q 'Device not supported' "$LOGS/sanitizer.log" &&
      conclude "$tool" note "the sanitizer does not support this machine's card"
  done
fi
finish
