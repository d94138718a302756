# The words of the project; CI uses these and no others. `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 30

.PHONY: help demo test lint types tests format bench bench-gpu gpu reliability clean

help:  ## List these words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.installed  ## Set up, then distil the digits: ten images, a table and a picture
	$(BIN)/mim4dd fit -c configs/distill/digits.yaml -c configs/with/mutual_information.yaml

test: lint types tests  ## Set up with test tools, then lint, types and tests

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

tests: $(VENV)/.installed-test
	$(BIN)/python -m pytest

format: $(VENV)/.installed-test  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## Measure speed and memory on this machine: the short form, some minutes
	for benchmark in step experts evaluation information scaling; do \
		$(BIN)/python -m benchmarks.$$benchmark --short --rounds 3 || exit 1; done
	$(BIN)/python -m benchmarks.loading --images 5000

bench-gpu: $(VENV)/.installed  ## The same on a CUDA device
	$(BIN)/python -m benchmarks.step --device cuda --cases 1x50 10x30 50x10
	$(BIN)/python -m benchmarks.experts --device cuda --networks 10
	$(BIN)/python -m benchmarks.evaluation --device cuda --networks 5
	$(BIN)/python -m benchmarks.information --device cuda

reliability: $(VENV)/.installed-test  ## Slow tests, then runs killed, terminated and damaged at random: about an hour
	$(BIN)/python -m pytest -m slow -n 0 tests
	$(BIN)/python -m benchmarks.reliability

gpu: $(VENV)/.installed-test  ## On a CUDA device: its tests, bench-gpu, then rows of the table for MINUTES=30
	@$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make gpu needs a CUDA device')"
	$(BIN)/python -m pytest -m gpu -n 0 -rs tests
	$(MAKE) bench-gpu
	$(BIN)/python -m benchmarks.table --minutes $(MINUTES)

clean:  ## Remove the environment and caches; checkpoints stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info

$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "Installing into $(VENV): torch is large, this takes some minutes ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
