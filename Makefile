# The two commands of the README: `make demo` and `make test`. Both make .venv and install what they need.
#
#   PYTHON=...        interpreter for .venv (3.11 or newer)        VENV=...   another place for it
#   CONSTRAINTS=...   versions to install instead of those that were tested together

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
CONSTRAINTS ?= constraints.txt
PIP := $(RUN) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint $(CONSTRAINTS) --editable
SOURCES := pyproject.toml setup.py CMakeLists.txt $(CONSTRAINTS) $(shell find csrc kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: demo docs lint test test-all fuzz bench benchmark gpu-check wheel clean

demo: $(VENV)/.installed            ## train on rendered scenes, write runs/demo/report.html
	$(RUN) -m dmtl demo --out runs/demo --overwrite

docs: $(VENV)/.installed-docs       ## the documentation site, in build/site; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

lint: $(VENV)/.installed-lint       ## style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: $(VENV)/.installed-test       ## run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist worksteal

test-all: $(VENV)/.installed-test   ## then the long ones: wide sweeps, every kernel compiled, sanitizers
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist worksteal -m slow

fuzz: $(VENV)/.installed-test       ## 20,000 damaged files against every reader (FUZZ="png mat" for some of them)
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz $(FUZZ)

bench: $(VENV)/.installed           ## time whole models next to other executions; writes runs/bench/bench.html
	$(RUN) -m benchmarks --out runs/bench

benchmark: $(VENV)/.installed-test  ## time the operators next to PyTorch
	$(RUN) -m pytest benchmarks --benchmark-only

wheel: $(VENV)/.installed-build     ## dist/: an sdist, and the wheel built from it, both in isolation
	rm -rf dist
	$(RUN) -m build

gpu-check:                          ## on a CUDA machine: build, time and test everything; rows in benchmarks/results
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) .cache build dist runs

$(RUN):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer not found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(RUN)
	$(INSTALL) '.[encoders]'
	touch $@

$(VENV)/.installed-test: $(SOURCES) | $(RUN)
	$(INSTALL) '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(INSTALL) '.[docs]'
	touch $@

$(VENV)/.installed-build: | $(RUN)
	$(PIP) install --quiet build
	touch $@

$(VENV)/.installed-lint: pyproject.toml | $(RUN)
	$(INSTALL) '.[lint]'
	touch $@
