# Needs make and Python 3.11 or later; everything else goes into $(VENV).
# A second call of any target installs nothing: stamps inside $(VENV) record what is there.

PYTHON       ?= python3
VENV         ?= .venv
# What the tests run against: `editable` (the source tree) or `wheel` (what users will install).
INSTALL      ?= editable
PYTEST_FLAGS ?=
# Most tests wait for another process, so there are more of them than cores.
TEST_JOBS    ?= 4
FUZZ_SECONDS ?= 60
DEMO_FLAGS   ?=
BENCH_FLAGS  ?=

PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --disable-pip-version-check
CODE := $(wildcard src tests examples tools benchmarks fuzz docs/conf.py)

PACKAGE_FILES := pyproject.toml $(shell find src -type f -not -path '*/__pycache__/*' 2>/dev/null)

# Stamps
BASE      := $(VENV)/.stamp-base
INSTALLED := $(VENV)/.stamp-install-$(INSTALL)
GROUP     := $(VENV)/.stamp-group-

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo demo-cluster test test-core lint format types docs build bench soak fuzz clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: $(INSTALLED) ## Create the virtual environment with the library in it

demo: $(INSTALLED) ## Run a job queue with simulated workers, and a dashboard to watch it
	@$(PY) examples/standalone_server.py $(DEMO_FLAGS)

demo-cluster: $(INSTALLED) $(GROUP)redis-server ## Run two servers and two workers behind one Redis
	@$(PY) examples/cluster.py $(DEMO_FLAGS)

test: $(INSTALLED) $(GROUP)test ## Run all tests, and say which were skipped and why
	$(PY) -m pytest -rs -n $(TEST_JOBS) --dist worksteal $(PYTEST_FLAGS)

test-core: $(INSTALLED) $(GROUP)test-core ## Run the tests that open no socket: seconds
	$(PY) -m pytest -rs $(PYTEST_FLAGS) tests/test_*.py

lint: $(GROUP)lint ## Check formatting and style
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m ruff check $(CODE)

format: $(GROUP)lint ## Format, and fix what can be fixed automatically
	$(PY) -m ruff format $(CODE)
	$(PY) -m ruff check --fix $(CODE)

types: $(INSTALLED) $(GROUP)test $(GROUP)lint $(GROUP)bench ## Check types, strictly, with mypy and pyright
	$(PY) -m mypy $(CODE)
	$(PY) -m pyright --pythonpath $(PY)

docs: $(INSTALLED) $(GROUP)docs ## Build the documentation into docs/_build/html
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

build: $(GROUP)build ## Build the sdist, and from it the wheel, into dist/
	rm -rf dist
	$(PY) -m build

bench: $(INSTALLED) $(GROUP)bench ## Measure against peers, side by side, and print the tables
	$(PY) -m benchmarks $(BENCH_FLAGS)

soak: $(INSTALLED) $(GROUP)test ## Run the tests that take minutes
	$(PY) -m pytest -rs -m soak --timeout 3600 $(PYTEST_FLAGS)

fuzz: $(INSTALLED) $(GROUP)test $(GROUP)fuzz ## Fuzz for FUZZ_SECONDS (60)
	$(PY) fuzz/run.py --seconds $(FUZZ_SECONDS)

clean: ## Remove everything that the other targets made
	rm -rf $(VENV) dist docs/_build .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Dependency groups need pip 25.1, which no Python before 3.14 brings.
$(BASE):
	@command -v $(PYTHON) >/dev/null || { \
	    echo "$(PYTHON) is not on PATH. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.11 or later is needed. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) -m venv failed, see above. Debian and Ubuntu ship it apart: apt-get install python3-venv"; exit 1; }
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.stamp-install-editable: $(BASE) pyproject.toml
	$(PIP) install --quiet --editable .
	@rm -f $(VENV)/.stamp-install-*; touch $@

# Twice, because --force-reinstall without --no-deps would reinstall the dependencies as well.
$(VENV)/.stamp-install-wheel: $(GROUP)build $(PACKAGE_FILES)
	rm -rf dist
	$(PY) -m build
	$(PIP) install --quiet dist/*.whl
	$(PIP) install --quiet --force-reinstall --no-deps dist/*.whl
	@rm -f $(VENV)/.stamp-install-*; touch $@

$(GROUP)%: $(BASE) pyproject.toml
	$(PIP) install --quiet --group $*
	@touch $@
