# make demo | test | test-all | bench | clean; each makes .venv first. `make help` says more.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
ONLY ?=

export OMP_WAIT_POLICY := PASSIVE

.PHONY: help install demo test test-all bench check types clean

help:
	@echo "make demo      the main job on MovieLens 100K: pretrain, adapt per segment, evaluate, report"
	@echo "make test      ruff, mypy --strict, pytest"
	@echo "make test-all  the same with the slow tests"
	@echo "make clean     removes .venv, build and caches; runs/ with its base, store and reports stays"
	@echo "make bench     speed and memory beside peers or limits; ONLY=pattern for a part"

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-no-deps.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("reclora needs Python 3.11 or newer, got " + sys.version.split()[0] + "; name one: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	@echo "installing the pinned packages into .venv (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-no-deps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/reclora doctor
	touch $@

demo: install
	$(BIN)/reclora demo

check: install types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p reclora

# mypy reads folders, not install mappings: show it the tree as a wheel would lay it out.
types:
	@rm -rf build/types && mkdir -p build/types/reclora
	@ln -s $(CURDIR)/reclora/* $(CURDIR)/pipelines $(CURDIR)/datasets build/types/reclora/

# Two processes, a file of tests in one of them: more would share the same few cores.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

bench: install
	$(BIN)/python -m tests.benchmarks $(ONLY)

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis
