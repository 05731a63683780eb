# The README's two commands are `make quickstart` and `make test`. Both set up `.venv` at the root first.
PYTHON ?= python3
BIN := .venv/bin
# A waiting OpenMP thread that spins slows a training with a busy neighbour many times.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

.PHONY: help setup quickstart test lint format clean

help:
	@echo "make setup       virtual environment in .venv, with everything that development needs"
	@echo "make quickstart  search, train and evaluate a binary network on handwritten digits, into runs/quickstart"
	@echo "make test        the whole test suite"
	@echo "make lint        ruff and mypy, as CI runs them"
	@echo "make format      ruff format"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nasb needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: setup
	$(BIN)/nasb run --config digits --out runs/quickstart
	$(BIN)/nasb summary runs/quickstart
	$(BIN)/nasb draw runs/quickstart -o runs/quickstart/architecture.png

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
