# Two commands on a fresh machine: `make demo` and `make test`. Both need Python 3.10 to 3.13, make and a package index.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv-test
PEERS := benchmarks/peers
DATA ?= data
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The tests start processes of their own; one thread in each keeps two cores from fighting over twenty.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test lint types layers tests fuzz bench results peers readme-table clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(DEMO)/.installed ## Expressions of the faces in the sample photographs, without PyTorch
	@$(DEMO)/bin/fer-infer --samples --format table

test: lint types layers tests ## Everything: lint, types, layers, all tests

lint: $(TEST)/.installed ## ruff: check and format
	@$(TEST)/bin/ruff check .
	@$(TEST)/bin/ruff format --check .

types: $(TEST)/.installed ## mypy --strict
	@$(TEST)/bin/mypy

layers: $(TEST)/.installed ## Imports only point towards the runtime
	@$(TEST)/bin/lint-imports --no-logo

tests: $(TEST)/.installed ## pytest
	@$(TEST)/bin/python -m pytest

fuzz: $(TEST)/.installed ## Mutated pictures and models, for longer than the tests do
	@$(TEST)/bin/python -m tests.runtime.fuzz --minutes 10

bench: $(TEST)/.installed ## Latency of every shipped model on this machine
	@$(TEST)/bin/fer-bench latency

results: $(TEST)/.installed ## Measure every figure of the README again: make results DATA=data
	@$(TEST)/bin/fer-bench latency --batch 1 --batch 32 --json benchmarks/results/latency.json
	@$(TEST)/bin/fer-bench accuracy --data $(DATA) --json benchmarks/results/accuracy.json
	@$(MAKE) --no-print-directory peers readme-table

# Threads are each peer's own default, so the limit of one thread that the tests run with is lifted.
peers: $(TEST)/.installed $(DEMO)/.installed $(PEERS)/.venv-fer/.installed $(PEERS)/.venv-torch/.installed ## What people use now, beside fer-edge: make peers DATA=data
	@env -u OMP_NUM_THREADS $(TEST)/bin/python $(PEERS)/compare_peers.py --data $(DATA)

readme-table: $(TEST)/.installed ## The README's table from benchmarks/results
	@$(TEST)/bin/python -m studies.readme_table

clean: ## Remove all environments and caches
	rm -rf $(DEMO) $(TEST) $(PEERS)/.venv-* build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The stamps make the second run quick; a changed requirement installs again.
$(DEMO)/.installed: EXTRAS :=
$(TEST)/.installed: EXTRAS := [dev]
$(PEERS)/.venv-torch/.installed: EXTRAS := [train]
$(DEMO)/.installed $(TEST)/.installed $(PEERS)/.venv-torch/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14) and "fer-edge needs Python 3.10 to 3.13, not " + sys.version.split()[0] + "; name one that you have: make PYTHON=python3.12")'
	@echo "installing fer-edge$(EXTRAS) into $(@D)" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(PIP_INSTALL) --editable '.$(EXTRAS)'
	@touch $@

$(PEERS)/.venv-fer/.installed: $(PEERS)/requirements-fer.txt
	@echo "installing fer (several GB) into $(@D)" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
