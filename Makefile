# Everything runs in .venv, which is rebuilt when its requirements change.
# `make demo` shows the library at work; `make test` checks it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLES := $(sort $(wildcard examples/*.py))

.PHONY: env demo test slow lint format docs screenshots examples clean
.DEFAULT_GOAL := env

env: $(STAMP)

# torch first and alone: what comes later finds it there and never asks for another.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "building $(VENV); this takes some minutes, once"
	$(BIN)/python -m pip install -qq --constraint constraints.txt torch
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

# Not finding any (5) is as good as passing.
slow: $(STAMP)
	$(BIN)/python -m pytest -m slow || test $$? -eq 5

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages build without a warning, and every code block in them runs.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python -m pytest docs

# The pictures of docs/images, taken in a headless Chromium.
screenshots: $(STAMP)
	$(BIN)/python -m tests.dashboard.screenshots docs/images

examples: $(STAMP)
	set -e; for example in $(EXAMPLES); do \
	  echo "== $$example"; $(BIN)/python $$example --quick; \
	done

clean:
	rm -rf $(VENV) docs/_build docs/_generated
