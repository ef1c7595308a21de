# Two commands on a fresh machine: `make demo` and `make test`. Both need Python 3.10 to 3.14, make and a package index.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv-test
LOWEST := .venv-lowest
S3 := .venv-s3
PEERS := benchmarks/peers
DATA ?= data
VOTES ?= ferplus
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests start many processes; one thread each is faster than many threads on few cores.
export OMP_NUM_THREADS ?= 1
# Where it is set, each of them would compile this package's modules anew: a sixth of a run of fer-infer.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint types layers tables tests test-lowest test-s3 studies fuzz soak arm64 container bench results peers readme-table clean

help: ## Show this list
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(DEMO)/.installed ## Expressions of the faces in the sample photos, without PyTorch
	@$(DEMO)/bin/fer-infer --samples --format table

test: lint types layers tables tests ## Everything: lint, types, layers, tables, all tests

lint: $(TEST)/.installed ## ruff: check and format
	@$(TEST)/bin/ruff check .
	@$(TEST)/bin/ruff format --check .

types: $(TEST)/.installed ## mypy --strict
	@$(TEST)/bin/mypy

layers: $(TEST)/.installed ## import-linter
	@$(TEST)/bin/lint-imports --no-logo

# Generated files go stale with every measurement and training; comparing them takes seconds.
tables: $(TEST)/.installed ## README's table and the model cards match the results files
	@$(TEST)/bin/python -m studies.readme_table --check
	@$(TEST)/bin/python -m studies.model_cards --check

# Three workers for two cores: tests wait for many processes that they start. A worker that crashes is replaced, and its
# module, or group of modules (tests/conftest.py), begins again: twice, not for ever.
tests: $(TEST)/.installed ## pytest
	@$(TEST)/bin/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --max-worker-restart 2

studies: $(TEST)/.installed ## Tests of benchmarks/studies, which users do not get
	@$(TEST)/bin/python -m pytest tests/studies

# The base install alone: extras bring gigabytes, and their versions are those of constraints.txt. uv resolves to the
# lowest versions that pyproject.toml allows, which have wheels for Python 3.10 to 3.12.
test-lowest: ## The runtime's tests at the lowest version of every dependency
	@rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST) && $(LOWEST)/bin/python -m pip install --quiet uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--editable '.[sign]' 'hatchling>=1.27' 'onnx>=1.18' 'pillow>=11.3' 'pytest>=8.2'
	@$(LOWEST)/bin/uv pip list --quiet --python $(LOWEST)/bin/python
	@$(LOWEST)/bin/python -m pytest tests/runtime

# In an environment of its own: moto is 80 MB, and its botocore needs an older python-dateutil than constraints.txt has.
test-s3: $(S3)/.installed ## Object stores against a real S3 interface: moto's server, on the loopback address
	@$(S3)/bin/python -m pytest tests/runtime/cluster/test_storage.py -k s3

$(S3)/.installed: pyproject.toml
	@echo "installing fer-edge and moto into $(@D)" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		'pyarrow>=25.0' 'fsspec>=2024.6' 'onnx>=1.18' 'moto[s3]>=5' flask flask-cors 'pytest>=8.2' 'pytest-timeout>=2.3'
	@touch $@

fuzz: $(TEST)/.installed ## Fuzz images, models, checkpoints, results and requests for a quarter of an hour
	@$(TEST)/bin/python -m tests.runtime.fuzz --minutes 5
	@$(TEST)/bin/python -m tests.fuzz_files --minutes 5
	@$(TEST)/bin/python -m tests.runtime.server.requests_fuzz --requests 10000

soak: $(TEST)/.installed ## Hours: kill runs at random moments, read 100,000 damaged images; one table
	@PYTHONPATH=. $(TEST)/bin/python -m tests.soak
	@PYTHONPATH=. $(TEST)/bin/python -m tests.soak.streams

arm64: $(TEST)/.installed ## The installed package and every bundled model on emulated arm64 processors
	@PYTHONPATH=. $(TEST)/bin/python -m tests.arm64 $(ARM64)

# Python's own library is enough, so that a user who owns nothing here can run it.
container: ## The image of examples/serve, built and run by rootless podman
	@PYTHONPATH=. $(PYTHON) -m tests.container

bench: $(TEST)/.installed ## Latency of every bundled model on this machine
	@$(TEST)/bin/fer-bench latency

results: $(TEST)/.installed ## Measure README's figures again: make results DATA=data
	@$(TEST)/bin/fer-bench latency --batch 1 --batch 32 --json benchmarks/results/latency.json
	@$(TEST)/bin/fer-bench accuracy --data $(DATA) --votes ferplus --json benchmarks/results/accuracy.json
	@$(MAKE) --no-print-directory peers readme-table

# Each peer uses its own default number of threads.
peers: $(TEST)/.installed $(DEMO)/.installed peer-fer peer-torch ## Measure other packages next to fer-edge: make peers DATA=data
	@env -u OMP_NUM_THREADS $(TEST)/bin/python $(PEERS)/compare_peers.py --data $(DATA) --votes $(VOTES)

# Kept although only a pattern names them.
.SECONDARY:

peer-%: $(PEERS)/.venv-%/.installed ## Make the environment of a package to compare with, such as peer-rmn
	@:

readme-table: $(TEST)/.installed ## Write README's table from benchmarks/results
	@$(TEST)/bin/python -m studies.readme_table

clean: ## Remove all environments and caches
	rm -rf $(DEMO) $(TEST) $(LOWEST) $(S3) .arm64 $(PEERS)/.venv-* build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Stamp files make later runs fast; a changed requirement installs again.
$(DEMO)/.installed: EXTRAS :=
$(TEST)/.installed: EXTRAS := [dev]
$(PEERS)/.venv-torch/.installed: EXTRAS := [train]
$(DEMO)/.installed $(TEST)/.installed $(PEERS)/.venv-torch/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15) and "fer-edge needs Python 3.10 to 3.14, not " + sys.version.split()[0] + "; name one that you have: make PYTHON=python3.12")'
	@echo "installing fer-edge$(EXTRAS) into $(@D)" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(PIP_INSTALL) --editable '.$(EXTRAS)'
	@touch $@

$(PEERS)/.venv-%/.installed: $(PEERS)/requirements-%.txt
	@echo "installing $* into $(@D)" >&2
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
