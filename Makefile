# The two commands a newcomer needs, and the ones a developer uses.
# Everything is installed into .venv, with the versions that constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test docs lint types check-tests check-gpu check-wheel clean help

help:  ## Say what the targets do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(INSTALLED)  ## Set everything up and run the whole path on drawn images (minutes)
	$(BIN)/notan demo

test: lint types check-tests  ## Set everything up, lint, type-check and run the tests

lint: $(INSTALLED)  ## Style and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED)  ## Types, strictly
	$(BIN)/mypy

check-tests: $(INSTALLED)  ## The test suite alone
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

docs: $(INSTALLED)  ## Build docs/ into docs/build/html, with warnings as errors
	$(BIN)/python -m sphinx -W --keep-going -n -q -E docs docs/build/html
	@echo "open docs/build/html/index.html"

check-gpu: $(INSTALLED)  ## The tests that want a CUDA device; all others hide it
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py

check-wheel: $(INSTALLED)  ## Build the wheel, and use it in fresh environments as a newcomer would
	PYTHON=$(BIN)/python scripts/check_wheel.sh

clean:  ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The constraints name one build of torch: the CPU's where there is one for this machine.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "notan needs Python 3.11 or newer; say which: make PYTHON=python3.11 test" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@
