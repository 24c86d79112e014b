# What people and CI call. `make help` lists it; every target does the set-up it needs, once, in .venv.
# Recipes are for any POSIX shell.

# Names the Python of .venv; by default .ci/find-python takes one that will do.
PYTHON ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
# Tests wait for processes much of the time, so three run side by side on two cores; with
# `make test WORKERS=` one runs after the other.
WORKERS ?= -n 3 --dist loadgroup --no-loadscope-reorder

# TensorFlow greets at its import: not between the lines of set-up.
TF_CPP_MIN_LOG_LEVEL ?= 3
export TF_CPP_MIN_LOG_LEVEL

# docker-compose.yml has a WORKERS of its own: one typed for make must not reach it.
unexport WORKERS

# Once the Python that made it is gone, as after an upgrade of the system, it is of no use.
$(shell test -x $(BIN)/python || rm -rf .venv)

.DELETE_ON_ERROR:
.PHONY: help train test test-fast mutants soak bench test-cluster test-docker test-machines test-slow test-threads docs lint format setup pins wheel clean

help: ## Show these lines
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "  More options:  make train ARGS='--epochs 3'    make test ARGS='-k moments'"

# Open MPI asks root for leave, and wants ssh even for ranks of this machine unless told not to.
MPIRUN := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated \
    $(BIN)/mpirun --oversubscribe --bind-to none

train: setup ## Train on real digits with two ranks and synchronized batch normalization
	@start='$(MPIRUN)'; [ ! -e .venv/.horovod ] || start=$(BIN)/horovodrun; \
	set -x; env $$start -np 2 $(BIN)/python -m launcher.train --norm sync $(ARGS)

test: setup ## Run every test this machine can run, but those of the targets below
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: setup ## Run the tests of a single process: two minutes
	$(BIN)/python -m pytest $(WORKERS) -m "not multiprocess and not docker and not prometheus and not browser and not machines and not slow" $(ARGS)

test-slow: setup ## Run the tests that compute for minutes: every style of program on every engine
	$(BIN)/python -m pytest $(WORKERS) -m slow $(ARGS)

test-threads: setup ## Run the tests of several processes with 2 and with 4 threads a rank
	@for n in 2 4; do \
	    env TF_NUM_INTRAOP_THREADS=$$n OMP_NUM_THREADS=$$n OPENBLAS_NUM_THREADS=$$n \
	        $(BIN)/python -m pytest $(WORKERS) -m "multiprocess and not docker and not machines and not slow" $(ARGS) || exit 1; \
	done

mutants: setup .venv/.mutation-tools ## Break the code in many places, see whether tests notice: within an hour
	@$(BIN)/python -m tests.mutants $(ARGS)

soak: setup ## Train for half an hour on each engine: launcher and ranks may not grow
	@$(BIN)/python -m tests.soak $(ARGS)

test-docker: setup ## Build the images in a real engine and run jobs in containers
	$(BIN)/python -m pytest -m docker $(ARGS)

test-machines: setup .venv/.wheel-tools ## Run README's commands on Debian 12, 13 and sid, and what else is marked machines
	$(BIN)/python -m pytest $(WORKERS) -m machines $(ARGS)

test-cluster: setup ## Run the cluster tests against the cluster that KUBECONFIG names
	TEST_CLUSTER=1 $(BIN)/python -m pytest tests/launcher/targets/cluster $(ARGS)

# The kind of processor that the wheel is for.
MACHINE ?= x86_64

wheel: .venv/.wheel-tools ## Make dist/: the source distribution, and a wheel with the kernels in it
	@$(BIN)/python .ci/wheel.py --machine $(MACHINE)

docs: .venv/.installed ## Build the documentation into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: setup ## Measure speed and memory beside the rivals; renews docs/performance.md
	$(BIN)/python -m benchmarks $(ARGS)

CPP := $(wildcard syncbn/native/*.cc syncbn/native/*.h)

lint: .venv/.installed ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: .venv/.installed ## Put the code into its layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

setup: .venv/.horovod .venv/.native ## Make .venv with all that this machine can build

pins: .venv/.installed ## Renew constraints.txt from the newest releases
	$(PIP) install --quiet --upgrade uv
	$(BIN)/python .ci/pins.py --upgrade

clean: ## Remove .venv and what tools leave behind
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

# The next two are extras: without one of them the rest works, and set-up goes on. There is a stamp
# only where it worked, so that whatever was missing is looked for again.
ZIG := CXX='$(CURDIR)/$(BIN)/python -m ziglang c++'

.venv/.horovod: .venv/.installed $(wildcard launcher/horovod_build/*.py)
	@rm -f $@; if $(BIN)/python -m launcher install-horovod --once; then touch $@; fi

.venv/.native: .venv/.installed $(wildcard syncbn/native/*)
	@rm -f $@; $(BIN)/python -m syncbn.native.build || { \
	    echo "Trying zig instead, a compiler that comes as a package ..." >&2; \
	    $(PIP) install --quiet --constraint constraints.txt ziglang && \
	    env $(ZIG) $(BIN)/python -m syncbn.native.build; } && touch $@ || \
	    echo "Layers go by slower TensorFlow operations instead; they compute the same." >&2
