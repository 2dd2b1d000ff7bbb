# Needs Python 3.11 or newer, and make; everything else is installed into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_FOR_BENCHMARKS := $(VENV)/.installed-benchmark
PEERS := .venv-peers
INSTALLED_PEERS := $(PEERS)/.installed
BENCHMARKS := $(basename $(notdir $(wildcard benchmarks/[!_]*.py)))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# TensorFlow's greetings at import say nothing about the code under test.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help venv demo test cluster-test check format proto chaos bench clean

help:
	@echo "make demo    install, train on handwritten digits with two workers, evaluate, predict"
	@echo "make test    install, then all tests"
	@echo "make cluster-test  install, then the tests on the Kubernetes of KUBECONFIG"
	@echo "make check   format, lint, types, imports, unit tests: about a minute"
	@echo "make format  put the code into its one format"
	@echo "make proto   generate the wire code anew"
	@echo "make chaos   kills and stops processes of trainings at random (CHAOS=\"--events=200 --every_s=2\")"
	@echo "make bench   ratios against Keras, MultiWorkerMirroredStrategy, torchft, torchrun, pyrecordio"
	@echo "make clean   remove what these leave behind"

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3.11 or python3 on the PATH" >&2; exit 1; }
	@echo "Installing into $(VENV): this takes a few minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[worker,dev]'
	@touch $@

demo: venv
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/digits/run demo

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/cluster tests

# One after the other: they are about one cluster. Without one, they fail here.
cluster-test: venv
	ELASTICDL_TEST_CLUSTER=required $(BIN)/python -m pytest tests/cluster

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: venv
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
		elasticdl/wire/elasticdl.proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. \
		elasticdl/wire/tensorboard.proto

chaos: venv
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

bench: $(INSTALLED_FOR_BENCHMARKS) $(INSTALLED_PEERS)
	@set -e; for each in $(BENCHMARKS); do \
		echo; echo "# $$each"; $(BIN)/python -m benchmarks.$$each; \
	done

# tf_keras asks for `tensorflow`, which would come beside tensorflow-cpu and overwrite it.
$(INSTALLED_FOR_BENCHMARKS): $(INSTALLED)
	@$(BIN)/python -m pip install -qq --no-deps -c constraints.txt tf_keras
	@touch $@

# What torchft asks for has no place among our own dependencies. PyPI keeps its last weeks alone.
$(INSTALLED_PEERS): Makefile
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq numpy torch==2.13.0 torchft-nightly
	@touch $@

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
