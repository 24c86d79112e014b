# Commands for developers and CI. `make help` lists them; every target does its own set-up, once, in .venv.
# Recipes work in any POSIX shell.

# The Python of .venv; by default .ci/find-python chooses one.
PYTHON ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# Tests wait for processes much of the time, so three run in parallel on two cores; with
# `make test WORKERS=` they run in sequence.
WORKERS ?= -n 3 --dist loadgroup --no-loadscope-reorder

# Suppresses TensorFlow's messages at import.
TF_CPP_MIN_LOG_LEVEL ?= 3
export TF_CPP_MIN_LOG_LEVEL

# docker-compose.yml has its own WORKERS variable: make's must not reach it.
unexport WORKERS

# A .venv whose Python no longer exists, as after an upgrade of the system, is removed.
$(shell test -x $(BIN)/python || rm -rf .venv)

.DELETE_ON_ERROR:
.PHONY: help train test test-fast mutants soak bench test-cluster test-docker test-machines test-slurm test-slow test-threads docs lint format setup pins wheel clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "  More options:  make train ARGS='--epochs 3'    make test ARGS='-k moments'"

# Open MPI needs these variables to run as root, and without ssh for ranks of this machine.
MPIRUN := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated \
    $(BIN)/mpirun --oversubscribe --bind-to none

train: setup ## Train on handwritten digits with two ranks and synchronized batch normalization
	@start='$(MPIRUN)'; [ ! -e .venv/.horovod ] || start=$(BIN)/horovodrun; \
	set -x; env $$start -np 2 $(BIN)/python -m launcher.train --norm sync $(ARGS)

test: setup ## Run every test that this machine supports, except those of the targets below
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: setup ## Run the tests of a single process: two minutes
	$(BIN)/python -m pytest $(WORKERS) -m "not multiprocess and not docker and not slurm and not prometheus and not browser and not machines and not slow" $(ARGS)

test-slow: setup ## Run the tests that take minutes: whole trainings, every style of program on every backend
	$(BIN)/python -m pytest $(WORKERS) -m slow $(ARGS)

test-threads: setup ## Run the tests of several processes with 2 and with 4 threads per rank
	@for n in 2 4; do \
	    env TF_NUM_INTRAOP_THREADS=$$n OMP_NUM_THREADS=$$n OPENBLAS_NUM_THREADS=$$n \
	        $(BIN)/python -m pytest $(WORKERS) -m "multiprocess and not docker and not machines" $(ARGS) || exit 1; \
	done

mutants: setup .venv/.mutation-tools ## Run mutation tests: within an hour
	@$(BIN)/python -m tests.mutants $(ARGS)

soak: setup ## Train for half an hour on each backend: launcher and ranks must not grow
	@$(BIN)/python -m tests.soak $(ARGS)

test-docker: setup ## Build the images in Docker Engine and run jobs in containers
	$(BIN)/python -m pytest $(WORKERS) -m docker $(ARGS)

test-slurm: setup ## Run jobs on a Slurm cluster that the tests start on this machine
	$(BIN)/python -m pytest -m slurm $(ARGS)

test-machines: setup .venv/.wheel-tools ## Run the README's commands on Debian 12, 13 and sid
	$(BIN)/python -m pytest $(WORKERS) -m machines $(ARGS)

test-cluster: setup ## Run the Kubernetes tests against the cluster of KUBECONFIG
	TEST_CLUSTER=1 $(BIN)/python -m pytest tests/launcher/targets/cluster $(ARGS)

# The processor architecture of the wheel.
MACHINE ?= x86_64

wheel: .venv/.wheel-tools ## Build dist/: the source distribution, and a wheel with the kernels
	@$(BIN)/python .ci/wheel.py --machine $(MACHINE)

docs: .venv/.installed ## Build the documentation into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: setup ## Measure speed and memory, compared with Keras and Horovod; updates docs/performance.md
	$(BIN)/python -m benchmarks $(ARGS)

CPP := $(wildcard syncbn/native/*.cc syncbn/native/*.h tests/machines/*.cc benchmarks/*/*.c)

lint: .venv/.installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: .venv/.installed ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

setup: .venv/.horovod .venv/.native ## Create .venv with everything that this machine can build

pins: .venv/.installed ## Update constraints.txt to the newest releases
	$(PIP) install --quiet --upgrade uv
	$(BIN)/python .ci/pins.py --upgrade

clean: ## Remove .venv, build outputs and caches
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@python=$$(.ci/find-python '$(PYTHON)') && "$$python" -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the pinned packages into .venv ..."
	@$(PIP) install --quiet --constraint constraints.txt setuptools wheel
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/.wheel-tools: .venv/.installed
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[wheel]'
	@touch $@

.venv/.mutation-tools: .venv/.installed
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[mutants]'
	@touch $@

# The next two are optional: set-up continues without them. The stamp exists only after success, so
# the next make tries again.
ZIG := CXX='$(CURDIR)/$(BIN)/python -m ziglang c++'

.venv/.horovod: .venv/.installed $(wildcard launcher/horovod_build/*.py)
	@rm -f $@; if $(BIN)/python -m launcher install-horovod --once; then touch $@; fi

.venv/.native: .venv/.installed $(wildcard syncbn/native/*)
	@rm -f $@; $(BIN)/python -m syncbn.native.build || { \
	    echo "Trying zig instead, a compiler that comes as a package ..." >&2; \
	    $(PIP) install --quiet --constraint constraints.txt ziglang && \
	    env $(ZIG) $(BIN)/python -m syncbn.native.build; } && touch $@ || \
	    echo "Layers go by slower TensorFlow operations instead; they compute the same." >&2
