# Every target does its own set-up.  Needed beforehand: Python 3.11+ with pip, and make (GNU make 3.81 or later).
# Which package index is used is pip's own configuration, see CONTRIBUTING.md.

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
KILL_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt
EXTRAS := math gym lora arrow figures
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo test test-kill test-doctor check fix coverage shapes clean

help:
	@echo "make demo      run recipes/backtrack.toml on the CPU, print the table, write the report"
	@echo "make setup     install everything into $(VENV)"
	@echo "make test      all tests                    (WORKERS=2, PYTEST_ARGS='-k name')"
	@echo "make test-kill the sweep of kills and full disks, minutes (KILL_ARGS='--every 4 --kills 50')"
	@echo "make test-doctor  the doctor on sixty healthy runs, minutes"
	@echo "make check     linters and type checker     (make fix repairs what it can)"
	@echo "make coverage  tests, and fail below 90 % of src/forkpoint"
	@echo "make shapes    tests, with every type and tensor shape checked at run time (twice as slow)"
	@echo "make clean     remove caches; $(VENV) and runs/ stay"

setup: $(VENV)/.stamp-dev

demo: $(VENV)/.stamp-core
	$(BIN)/forkpoint run recipes/backtrack.toml --runs runs --resume-if-exists

test: $(VENV)/.stamp-dev
	$(PYTEST) $(PYTEST_ARGS)

# SIGKILL and full disks at every fault point, and SIGKILL at random instants; `make test` holds a part of it.
test-kill: $(VENV)/.stamp-dev
	$(TEST_ENV) PYTHONPATH=tests:tests/kill $(BIN)/python tests/kill/kill_sweep.py $(KILL_ARGS)

# Sixty healthy runs without an alarm; `make test` holds a part of them.
test-doctor: $(VENV)/.stamp-dev
	FORKPOINT_LONG=1 $(PYTEST) tests/doctor tests/cli/test_doctor.py $(PYTEST_ARGS)

check: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.stamp-dev
	rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

# beartype's default strategy looks at one random item of a list, `On` at all of them.
shapes: $(VENV)/.stamp-dev
	$(PYTEST) "--jaxtyping-packages=forkpoint,beartype.beartype(conf=beartype.BeartypeConf(strategy=beartype.BeartypeStrategy.On))" $(PYTEST_ARGS)

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	rm -f .coverage .coverage.*
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# A virtual environment that already has a working pip is kept.  Some systems ship pip but not ensurepip:
# there the system's pip installs pip into the new environment.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "forkpoint needs Python 3.11 or later, '$(PYTHON)' is not that: try make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	       && $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install --quiet pip; }
	@touch $@

# What running needs, and no more: a demo installs nothing else.
$(VENV)/.stamp-core: pyproject.toml constraints.txt $(VENV)/.stamp-venv
	@echo "Installing forkpoint and its pinned dependencies into $(VENV) (on Linux see CONTRIBUTING.md for the small CPU build of torch)"
	$(INSTALL) --editable .
	@touch $@

# The development tools, and each optional extra that can be had on this machine.
$(VENV)/.stamp-dev: $(VENV)/.stamp-core
	$(INSTALL) --quiet --editable ".[dev]"
	@for extra in $(EXTRAS); do \
	  log="$(VENV)/extra-$$extra.log"; \
	  if $(INSTALL) --quiet --editable ".[$$extra]" >"$$log" 2>&1; then \
	    echo "extra '$$extra' installed"; \
	  else \
	    echo "warning: the extra '$$extra' cannot be had here (why: $$log); its tests will be skipped" >&2; \
	  fi; \
	done
	@touch $@
