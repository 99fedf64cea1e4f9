# Needs python3 (3.11 or newer), make and a package index. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two test workers with one thread each: the suite is many small tensors.
TEST_WORKERS ?= 2

.PHONY: help install demo test test-slow check lint types docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rankloom needs Python 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP)  ## make the environment

demo: install  ## MovieLens-100K from download to leaderboard and page, under six minutes
	$(BIN)/rankloom data get movielens-100k --out demo
	$(BIN)/rankloom prepare demo/movielens-100k/raw/schema.toml --out demo/movielens-100k/prepared --overwrite
	$(BIN)/rankloom compare recipes/movielens-100k/*.toml --dataset demo/movielens-100k/prepared \
		--seeds 3 --reference lr --out demo/runs --report demo/report

test: install  ## the default test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS)

test-slow: install  ## everything, slow tests too
	$(BIN)/python -m pytest -m 'slow or data'

check: lint types docs  ## lint, types, docs

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict --quiet

bench: install  ## speed against the peers, in an environment of its own (long)
	$(BIN)/python -m benchmarks

clean:  ## remove the environment and caches
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
