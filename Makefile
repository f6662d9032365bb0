# make quickstart   set up .venv, run specs/quickstart.yaml, say where the report is
# make test         set up .venv with the test tools, check format, lint and types, run the tests
# make test-chaos   the long stories: clusters, machines and processes killed at many places
# make benchmarks   measure what docs/benchmarks.md claims
# make sweep        every causal language model of transformers: right, or refused and why; takes minutes
# make chaos        kill random processes of a cluster, 50 times; takes most of an hour
# The first Python from 3.11 to 3.13 that is there; where there is none, uv fetches one.
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
    $$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null \
    && echo $$python && break; done)
endif
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# On all cores, which pip does not; Ray starts many processes, and some environments never write what they compile.
# Some packages ship templates that are no Python of today: those stay uncompiled.
COMPILE := echo "compiling Python files: takes a minute or three, once" && $(BIN)/python -m compileall -q -j 0 $(VENV)/lib boomspec runners > /dev/null || true
# Two files at a time, the longest first.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25

.PHONY: quickstart test test-chaos benchmarks sweep chaos setup clean

quickstart: $(VENV)/.run
	$(BIN)/boomspec run specs/quickstart.yaml

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

test-chaos: setup
	$(PYTEST) -m chaos

benchmarks: setup
	$(BIN)/python -m tests.benchmarks.startup
	$(BIN)/python tests/benchmarks/head_memory.py
	$(BIN)/python -m tests.benchmarks.distill
	$(BIN)/python -m tests.benchmarks.family
	$(BIN)/python -m tests.benchmarks.losses
	$(BIN)/python -m tests.benchmarks.cohort
	$(BIN)/python -m tests.benchmarks.checkpoints
	$(BIN)/python -m tests.benchmarks.gpu
	$(BIN)/python tests/benchmarks/assembly.py
	$(BIN)/python tests/benchmarks/search.py
	$(BIN)/python tests/benchmarks/sweep.py
	$(BIN)/python tests/benchmarks/overhead.py
	$(BIN)/python -m tests.benchmarks.fan_out

sweep: setup
	$(BIN)/python -m tests.sweeps.families --golden

chaos: setup
	$(BIN)/python -m tests.benchmarks.chaos

setup: $(VENV)/.dev

$(BIN)/python:
	@if [ -n "$(PYTHON)" ]; then $(PYTHON) -m venv $(VENV); \
	elif command -v uv > /dev/null; then uv venv --quiet --seed --python 3.13 $(VENV); \
	else echo "boomspec needs Python 3.11, 3.12 or 3.13 with its venv module, and none is here." >&2; \
	  echo "Install one (apt install python3-venv, brew install python@3.13, or uv: docs.astral.sh/uv)," >&2; \
	  echo "or name one: make quickstart PYTHON=/path/to/python3.12" >&2; exit 2; fi

# What a run needs.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '.[run]'
	$(COMPILE)
	touch $@

# What tests and benchmarks need, too.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) '.[run,dev]'
	$(COMPILE)
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV)
