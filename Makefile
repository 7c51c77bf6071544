# `make demo` and `make test` do all set-up themselves: a virtual environment in .venv and the packages of
# constraints.txt. They need Python 3.10 or newer (choose one with `make PYTHON=/path/to/python3 test`).
PYTHON ?= python3
# Test processes, `logical` for as many as there are cores, at most 8; each runs torch on one thread.
WORKERS ?= logical
ARGS ?=

BIN := .venv/bin
TYPES := build/types/unimodal_ar
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format clean

help:  ## show this list
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

demo: .venv/.demo  ## set up, then train, evaluate and draw forecasts of real temperatures
	@$(BIN)/python examples/demo.py $(ARGS)

test: .venv/.test  ## set up, then run the tests (ARGS="-k layout" is passed to pytest)
	@$(PYTEST) $(ARGS)

test-all: .venv/.test  ## the slow tests, too
	@$(PYTEST) -m 'slow or not slow' $(ARGS)

lint: .venv/.test  ## ruff (rules and format) and mypy
	@mkdir -p $(TYPES) && ln -sfn ../../../adapters $(TYPES)/adapters && ln -sfn ../../../recipes $(TYPES)/recipes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/.test  ## let ruff repair format and import order
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

clean:  ## remove the environment and everything built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: an environment whose making was interrupted is begun again.
.venv/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no $(PYTHON); name a Python 3.10 or newer with:" \
	    "make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1), and 3.10 or newer is needed;" \
	    "name another with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments (no ensurepip; on Debian and Ubuntu the package" \
	    "python3-venv has it); install it or name another with:" \
	    "make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.demo: .venv/.created pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	@touch $@

# The extra `test` contains `demo`.
.venv/.test: .venv/.created pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	@touch .venv/.demo $@
