# Two commands on a fresh machine: `make demo` and `make test`. Both need Python 3.10+, make and a package index.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv-test
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests and benchmarks share two cores with each other, not with BLAS threads.
export OMP_NUM_THREADS ?= 1
export ORT_DISABLE_TELEMETRY = 1

.PHONY: help demo test lint types layers tests fuzz bench readme-table clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(DEMO)/.installed ## Expressions of the faces in the sample photographs, without PyTorch
	@$(DEMO)/bin/fer-infer --samples --format table

test: $(TEST)/.installed lint types layers tests ## Everything: lint, types, layers, all tests

lint: $(TEST)/.installed ## ruff: check and format
	@$(TEST)/bin/ruff check .
	@$(TEST)/bin/ruff format --check .

types: $(TEST)/.installed ## mypy --strict
	@$(TEST)/bin/mypy

layers: $(TEST)/.installed ## Imports only point towards the runtime
	@$(TEST)/bin/lint-imports

tests: $(TEST)/.installed ## pytest
	@$(TEST)/bin/python -m pytest

fuzz: $(TEST)/.installed ## Mutated pictures and models, for longer than the tests do
	@$(TEST)/bin/python -m tests.runtime.fuzz --minutes 10

bench: $(TEST)/.installed ## Latency of every shipped model on this machine
	@$(TEST)/bin/fer-bench latency

clean: ## Remove both environments and all caches
	rm -rf $(DEMO) $(TEST) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The stamps make the second run quick; a changed requirement installs again.
$(DEMO)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fer-edge needs Python 3.10 or newer, not " + sys.version.split()[0] + "; try: make PYTHON=python3.12 demo")'
	@echo "making $(DEMO): the runtime and nothing else" >&2
	@$(PYTHON) -m venv $(DEMO)
	@$(DEMO)/bin/python $(PIP) --editable .
	@touch $@

$(TEST)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fer-edge needs Python 3.10 or newer, not " + sys.version.split()[0] + "; try: make PYTHON=python3.12 test")'
	@echo "making $(TEST): training, export, benchmark and the tools (1.5 GB with PyTorch)" >&2
	@$(PYTHON) -m venv $(TEST)
	@$(TEST)/bin/python $(PIP) --editable '.[dev]'
	@touch $@
