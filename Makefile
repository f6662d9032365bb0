# make quickstart   set up .venv, run specs/quickstart.yaml, say where the report is
# make test         set up .venv, check format, lint and types, run the tests
# make benchmarks   measure what the README claims
# make sweep        every causal language model of transformers: right, or refused and why; takes minutes
# make chaos        kill random processes of a cluster, 50 times; takes most of an hour
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test benchmarks sweep chaos setup clean

quickstart: setup
	$(BIN)/boomspec run specs/quickstart.yaml

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

benchmarks: setup
	$(BIN)/python -m tests.benchmarks.startup
	$(BIN)/python tests/benchmarks/head_memory.py
	$(BIN)/python tests/benchmarks/assembly.py
	$(BIN)/python tests/benchmarks/search.py
	$(BIN)/python tests/benchmarks/sweep.py
	$(BIN)/python tests/benchmarks/overhead.py
	$(BIN)/python -m tests.benchmarks.fan_out

sweep: setup
	$(BIN)/python -m tests.sweeps.families --golden

chaos: setup
	$(BIN)/python -m tests.benchmarks.chaos

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[run,dev]'
	touch $@

clean:
	rm -rf $(VENV)
