# The README's two commands are `make quickstart` and `make test`. Both set up `.venv` at the root first.
PYTHON ?= python3
BIN := .venv/bin
# A waiting OpenMP thread that spins slows a training with a busy neighbour many times.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

.PHONY: help setup quickstart test test-onnxruntime lint format engine engine-aarch64 engine-fuzz peers clean

# What the Python package of the engine is built of, and what clang-format looks after.
ENGINE := $(shell find engine -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' \
	-o -name CMakeLists.txt \) -not -path 'engine/build/*' -not -path 'engine/tests/*' -not -path 'engine/fuzz/*')
CPP := $(shell find engine -type f \( -name '*.cpp' -o -name '*.h' \) -not -path 'engine/build/*')

help:
	@echo "make setup       virtual environment in .venv, with everything that development needs"
	@echo "make quickstart  search, train and evaluate a binary network on handwritten digits, into runs/quickstart"
	@echo "make test        the whole test suite"
	@echo "make test-onnxruntime  the tests that need ONNX Runtime, a peer; into build/onnxruntime"
	@echo "make lint        ruff, mypy and clang-format, as CI runs them"
	@echo "make format      ruff format, clang-format"
	@echo "make engine      nasb-run (static) and the C library, into build/engine-native"
	@echo "make engine-aarch64  nasb-run for 64-bit ARM, into build/engine-aarch64; runs it under qemu-aarch64"
	@echo "make engine-fuzz FUZZ_SECONDS=600  fuzz the loader and the C API with clang's libFuzzer"
	@echo "make peers       what benchmarks/engine.py compares the engine with, in environments under build/peers"

setup: .venv/engine

# nasb works without its engine: where it cannot be built, say why and go on.
.venv/engine: .venv/ready $(ENGINE)
	@if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then \
		echo "no C++17 compiler (c++, g++ or clang++): nasb is set up without its engine; e.g. apt-get install g++"; \
	else touch $@.begun && $(BIN)/python -m pip install --quiet ./engine && mv $@.begun $@; fi

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
	$(BIN)/nasb export runs/quickstart -o runs/quickstart/model.onnx
	@if test -x $(BIN)/nasb-engine; then $(BIN)/nasb bench runs/quickstart/model.onnx --against torch; \
		else echo "the engine is not installed (make setup says why): model.onnx runs in ONNX Runtime"; fi

# As many processes as cores, one thread of torch each; a file's tests stay together, and with them what they share.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# A peer is no part of the environment. What ONNX Runtime needs beside itself, the environment has.
ONNXRUNTIME := build/onnxruntime
$(ONNXRUNTIME)/.ready: benchmarks/peers/requirements.txt .venv/ready
	rm -rf $(ONNXRUNTIME)
	$(BIN)/python -m pip install --quiet --no-deps --target $(ONNXRUNTIME) -c benchmarks/peers/requirements.txt onnxruntime
	@touch $@

test-onnxruntime: setup $(ONNXRUNTIME)/.ready
	PYTHONPATH=$(CURDIR)/$(ONNXRUNTIME) $(BIN)/python -c "import onnxruntime.quantization"
	PYTHONPATH=$(CURDIR)/$(ONNXRUNTIME) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -k onnxruntime \
		tests/deploy/test_deploy_onnxruntime.py engine/tests/test_engine_bench.py tests/cli/test_cli_exported.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

engine: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" engine/build.sh native

engine-aarch64: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" engine/build.sh aarch64
	qemu-aarch64 build/engine-aarch64/nasb-run --version

FUZZ_SECONDS ?= 600
engine-fuzz: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" engine/build.sh fuzz
	mkdir -p build/fuzz
	build/engine-fuzz/nasb-fuzz-loader -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -timeout=60 -artifact_prefix=build/fuzz/found- \
		build/fuzz engine/fuzz/corpus

PEERS := build/peers
peers:
	test -x $(PEERS)/env/bin/python || $(PYTHON) -m venv $(PEERS)/env
	$(PEERS)/env/bin/python -m pip install --quiet -c constraints.txt -e . ./engine -r benchmarks/peers/requirements.txt
	test -x $(PEERS)/larq/bin/python || $(PYTHON) -m venv $(PEERS)/larq
	$(PEERS)/larq/bin/python -m pip install --quiet -r benchmarks/peers/requirements-larq.txt
	$(PEERS)/larq/bin/python -m pip install --quiet --no-deps -r benchmarks/peers/requirements-larq-zoo.txt

clean:
	rm -rf .venv build engine/build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
