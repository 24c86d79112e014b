# What people and CI call. `make help` lists it; every target does the set-up it needs, once, in .venv.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# Tests wait for processes much of the time, so three run side by side on two cores; with
# `make test WORKERS=` one runs after the other.
WORKERS ?= -n 3 --dist loadgroup --no-loadscope-reorder

# docker-compose.yml has a WORKERS of its own: one typed for make must not reach it.
unexport WORKERS

.DELETE_ON_ERROR:
.PHONY: help train test test-fast bench test-cluster test-docker docs lint format setup pins clean

help: ## Show these lines
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "  More options:  make train ARGS='--epochs 3'    make test ARGS='-k moments'"

train: setup ## Train on real digits with two ranks and synchronized batch normalization
	$(BIN)/horovodrun -np 2 $(BIN)/python -m launcher.train --norm sync $(ARGS)

test: setup ## Run every test this machine can run
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: setup ## Run the tests of a single process: two minutes
	$(BIN)/python -m pytest $(WORKERS) -m "not multiprocess and not docker and not prometheus and not browser" $(ARGS)

test-docker: setup ## Build the images in a real engine and run jobs in containers
	$(BIN)/python -m pytest -m docker $(ARGS)

test-cluster: setup ## Run the cluster tests against the cluster that KUBECONFIG names
	TEST_CLUSTER=1 $(BIN)/python -m pytest tests/launcher/targets/cluster $(ARGS)

docs: .venv/.installed ## Build the documentation into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: setup ## Measure speed and memory beside the rivals; renews docs/performance.md
	$(BIN)/python -m benchmarks $(ARGS)

lint: .venv/.installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed ## Put the code into its layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/.horovod .venv/.native ## Make .venv with everything in it, Horovod too

pins: .venv/.installed ## Renew constraints.txt from the newest releases
	$(BIN)/python .ci/pins.py

clean: ## Remove .venv and what tools leave behind
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Needs Python 3.11 or newer. Received: '$(PYTHON)'. Install one: apt-get install python3 python3-venv; or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	    { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment. Install what it lacks: apt-get install python3-venv" >&2; exit 1; }

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned packages into .venv ..."
	@$(PIP) install --quiet --constraint constraints.txt setuptools wheel
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/.horovod: .venv/.installed $(wildcard launcher/horovod_build/*.py)
	$(BIN)/python -m launcher install-horovod
	@touch $@

.venv/.native: .venv/.installed $(wildcard syncbn/native/*)
	$(BIN)/python -m syncbn.native.build
	@touch $@
