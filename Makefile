# make quickstart   set up .venv, run specs/quickstart.yaml, say where the report is
# make test         set up .venv with the test tools, check format, lint and types, run the tests
# make test-chaos   the long stories: clusters, machines and processes killed at many places
# make benchmarks   measure what docs/benchmarks.md claims
# make sweep        every causal language model of transformers: right, or refused and why; takes minutes
# make chaos        kill random processes of a cluster, 50 times; takes most of an hour
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# On all cores, which pip does not; Ray starts many processes, and some environments never write what they compile.
# Some packages ship templates that are no Python of today: those stay uncompiled.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib boomspec runners > /dev/null || true
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

# What a run needs.
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '.[run]'
	$(COMPILE)
	touch $@

# What tests and benchmarks need, too.
$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '.[run,dev]'
	$(COMPILE)
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV)
