# Everything happens in .venv and sets itself up: `make demo`, `make test`. `make help` names the rest.

# The torch build: TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c '$(SUPPORTED)' 2> /dev/null && echo $$python && break; done)
# Processes that tests run in, each with one thread, and arguments of pytest: ARGS='-k packing'
JOBS ?= auto
ARGS ?=

RUN = .venv/bin/python

.PHONY: help demo test setup format lint types clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install all that is needed into .venv; what is there and works is kept
	@.venv/bin/python -c '' 2> /dev/null || { \
		test -n '$(PYTHON)' || { echo 'Python 3.10, 3.11 or 3.12 is needed: make setup PYTHON=...'; exit 1; }; \
		echo '[0/5] .venv (seconds)'; $(PYTHON) -m venv --clear .venv; }
	@TORCH='$(TORCH)' $(RUN) .ci/setup.py

test: setup ## the whole test suite
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --maxprocesses 8 $(ARGS)

format: setup ## put the code in order
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix

lint: setup ## say what is out of order
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m codespell_lib

types: setup ## check the types of the library
	$(RUN) -m mypy

clean: ## remove .venv, caches and what the demo made
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf data/sample work_dirs/demo
