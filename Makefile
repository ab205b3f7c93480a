# make demo | test | lint | wheel | sanitize | build | bench | format | clean
#
# Each target sets up what it needs and repeats in seconds when nothing changed. Needed beforehand: Python >= 3.10 with
# venv, a C++20 compiler, make.
#
#   make test                     creates .venv with the CPU build of torch pinned below
#   make test PYTHON=python3.12   uses that interpreter's environment as it is: installs what is missing, keeps its torch

TORCH := torch==2.13.0
LINT_TOOLS := ruff==0.17.5 mypy==2.4.1 clang-format==23.1.5
BUILD_TOOLS := "setuptools>=77" wheel ninja "pybind11>=2.13"
MINIMUM := import sys; sys.exit("segkernels needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)

ifdef PYTHON
PREFIX := $(shell $(PYTHON) -c "import sys; print(sys.prefix)")
override PYTHON := $(shell $(PYTHON) -c "import sys; print(sys.executable)")
$(if $(PYTHON),,$(error PYTHON does not name a Python interpreter))
else
PREFIX := $(CURDIR)/.venv
PYTHON := $(PREFIX)/bin/python
OWN_VENV := 1
endif

# The stamps lie in the environment they speak of, so that removing it removes them; one pair for each checkout.
STAMP := $(PREFIX)/.segkernels$(subst /,-,$(CURDIR))
ENVIRONMENT := $(STAMP).environment
LINTERS := $(STAMP).linters
BUILT := $(STAMP).built
SOURCES := $(shell find csrc -type f) setup.py
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# Python compiles what is imported when it is; compiling all of torch took two thirds of its installation.
PIP_INSTALL = $(PYTHON) -m pip install -q --no-compile
CLANG_FORMAT = $(PYTHON) -c "import clang_format; clang_format.clang_format()"

# A source that does not compile is an error here, not a fall back to the reference tier or to yesterday's library.
SEGKERNELS_REQUIRE_NATIVE ?= 1
export SEGKERNELS_REQUIRE_NATIVE

# Where the environment forbids .pyc files, every process would compile all that it imports of torch again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint wheel sanitize build bench format clean

demo: $(BUILT)
	$(PYTHON) -m segkernels demo

test: $(BUILT)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m pytest -n auto --maxprocesses 4  # a process a core: more threads would wait for each other

build: $(BUILT)

lint: $(LINTERS)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES)

format: $(LINTERS)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(CLANG_FORMAT) -i $(CXX_FILES)

bench: $(BUILT)
	$(PYTHON) -m benchmarks
	$(PYTHON) -m benchmarks report --out build/report.html

# build/lib* would hand files of an older version to the wheel.
wheel: $(BUILT)
	rm -rf build/lib* dist
	$(PYTHON) -m pip wheel -q --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist

# A copy of the tree, so that the instrumented library never lies where the normal one is loaded from. libstdc++ is
# preloaded too: AddressSanitizer looks for __cxa_throw before torch brings it in. A finding ends the process, so its
# report must not lie in pytest's capture: --capture=sys leaves stderr of C++ alone. The CUDA sources, compiled for the CPU,
# have a sanitizer build of their own in tests/emulation.
SANITIZE := build/sanitize
sanitize: $(ENVIRONMENT)
	mkdir -p $(SANITIZE)
	cd $(SANITIZE) && rm -rf segkernels csrc tests
	cp -a segkernels csrc tests setup.py pyproject.toml README.md LICENSE $(SANITIZE)
	rm -f $(SANITIZE)/segkernels/*.so
	cd $(SANITIZE) && SEGKERNELS_SANITIZE=1 SEGKERNELS_CUDA=0 $(PYTHON) setup.py -q build_ext --inplace
	cd $(SANITIZE) && cxx=$${CXX:-c++} && \
	  LD_PRELOAD="$$($$cxx -print-file-name=libasan.so) $$($$cxx -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:$$ASAN_OPTIONS UBSAN_OPTIONS=print_stacktrace=1:$$UBSAN_OPTIONS \
	  SEGKERNELS_EMULATED_LIBRARY=/none $(PYTHON) -m pytest tests/ops -p no:cacheprovider --capture=sys $(SANITIZE_TESTS)
	SEGKERNELS_SANITIZE=1 $(PYTHON) -m pytest tests/emulation/test_sanitized.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -f segkernels/*.so segkernels/_build_report.json $(ENVIRONMENT) $(LINTERS) $(BUILT)

$(ENVIRONMENT): pyproject.toml
ifdef OWN_VENV
	@python3 -c '$(MINIMUM)'
	test -x $(PYTHON) || python3 -m venv $(PREFIX)
	$(PIP_INSTALL) $(TORCH)
else
	@$(PYTHON) -c '$(MINIMUM)'
	@$(PYTHON) -c "import torch" || $(PIP_INSTALL) $(TORCH)
endif
	@mkdir -p build
	$(PYTHON) -c "import torch; print('torch==' + torch.__version__)" > build/constraints.txt
	$(PIP_INSTALL) -c build/constraints.txt $(BUILD_TOOLS)
	$(PIP_INSTALL) -c build/constraints.txt --no-build-isolation -e ".[test,demo]"
	@touch $@

# mypy reads the package's imports, hence the environment; the versions are pinned because formatters change their mind.
$(LINTERS): $(ENVIRONMENT) Makefile
	$(PIP_INSTALL) $(LINT_TOOLS)
	@touch $@

$(BUILT): $(ENVIRONMENT) $(SOURCES)
	$(PYTHON) setup.py -q build_ext --inplace
	@touch $@
