# The set-up is made once and again only when its inputs change. `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
# What to give to pip, e.g. TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu".
TORCH ?= torch==2.13.0
# Processes of `make test`, beside this one; 0 for this one alone. Each has all threads, which sleep
# where they wait.
WORKERS ?= 0
# More arguments for the command behind a target, e.g. make demo ARGS="--name second --seed 1".
ARGS ?=

BIN := $(abspath $(VENV))/bin
# cmake and ninja come from the environment, whatever the machine has.
export PATH := $(BIN):$(PATH)
SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: help demo test scvi matrix bench gpu lint pages docs wheel sdist clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    set up, build, and train a VAE on digits: see runs/digits'
	@echo 'make test    set up, build, and run the test suite'
	@echo 'make scvi    set up with scvi-tools, and run the tests of what serves it'
	@echo 'make matrix  the test suite as other machines would run it, for hours: see tests/matrix.py'
	@echo 'make bench   set up, build, and run the benchmarks: see benchmarks/results'
	@echo 'make gpu     build, test and benchmark on a machine with a CUDA card'
	@echo 'make lint    ruff and mypy'
	@echo 'make wheel   build, repair, check and try a wheel for the torch of the environment: see dist'
	@echo 'make sdist   make and check the sdist: see dist'
	@echo 'make pages   write the pages of docs/ that are made from the code'
	@echo 'make docs    make the site, check its links: see build/docs/html'
	@echo 'make clean   remove the environment and the build'
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH="$(TORCH)" WORKERS=$(WORKERS) ARGS="$(ARGS)"'

demo: $(VENV)/built-demo
	@$(BIN)/fastvi train $(ARGS)

test: $(VENV)/built-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder $(ARGS)

scvi: $(VENV)/built-test,scvi
	$(BIN)/python -m pytest tests/integrations/test_scvi*.py $(ARGS)

matrix: $(VENV)/built-test
	$(BIN)/python tests/matrix.py $(ARGS)

bench: $(VENV)/built-test
	$(BIN)/python -m benchmarks $(ARGS)

# An interpreter that has all it takes is used as it is: such machines are often offline.
gpu:
	@if $(PYTHON) -c 'import pybind11, torch' 2>/dev/null; then \
	  PYTHON='$(PYTHON)' bash benchmarks/gpu.sh $(ARGS); \
	else \
	  $(MAKE) $(VENV)/built-test && PYTHON='$(BIN)/python' bash benchmarks/gpu.sh $(ARGS); \
	fi

lint: $(VENV)/built-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests/device -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

wheel: $(VENV)/built-wheel
	$(BIN)/python tools/release.py $(ARGS)

sdist: $(VENV)/set-up
	$(BIN)/python tools/release.py sdist $(ARGS)

pages: $(VENV)/built-test
	$(BIN)/python tests/support/pages.py

# Warnings are errors, and so is a name or a link that leads nowhere.
docs: $(VENV)/built-docs
	$(BIN)/python -m sphinx -W -n --keep-going -d build/docs/trees -b html docs build/docs/html $(ARGS)
	$(BIN)/python -m sphinx -W -n --keep-going -d build/docs/trees -b linkcheck docs build/docs/links

clean:
	rm -rf $(VENV) build dist fastvi/_build.json fastvi/_C.*.so

# torch first: fastvi is built against the torch that will run it.
# The stamp holds what was installed: another TORCH sets up again.
ifneq ($(strip $(shell cat $(VENV)/set-up 2>/dev/null)),$(strip $(TORCH)))
.PHONY: $(VENV)/set-up
endif
$(VENV)/set-up: Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"fastvi needs Python 3.10 or newer, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=/path/to/another")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install 'setuptools>=77' wheel 'pybind11>=2.13' ninja 'cmake>=3.26'
	@echo '$(TORCH)' > $@

$(VENV)/built-%: $(VENV)/set-up $(SOURCES)
	@echo 'Building the kernels: some minutes on two cores the first time.'
	$(BIN)/python -m pip install --no-build-isolation -e '.[$*]'
	@touch $@
