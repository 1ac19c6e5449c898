# Everything a person or CI types. Each target sets up what it needs; `make setup` a second time takes no time.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (default: the newest of 3.11 to 3.13)
#   ARGS="..."          more arguments for pytest, the demo or the benchmarks

SHELL := bash
.DEFAULT_GOAL := help
bin := .venv/bin
# One file of tests runs in one process, as many of them at once as there are processors; ARGS="-n 0" for one by one.
# In the order of tests/conftest.py: xdist's own, by how many tests a file has, begins those that take longest last.
workers := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
pytest := $(bin)/python -m pytest -n $(workers) --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo lint format test test-all bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup:  ## create or repair .venv with the pinned packages
	@PYTHON='$(PYTHON)' scripts/setup

demo: setup  ## run the whole story on real data
	@$(bin)/strongroom demo $(ARGS)

lint: setup  ## style, types and layers
	@$(bin)/ruff check --quiet
	@$(bin)/ruff format --check --quiet || { echo 'lint: `make format` formats the files named by: ruff format --check'; exit 1; }
	@$(bin)/mypy
	@layers=$$($(bin)/lint-imports --no-logo) || { echo "$$layers"; exit 1; }; echo "$${layers##*$$'\n'}"

format: setup  ## format the code and sort its imports
	@$(bin)/ruff check --quiet --fix-only
	@$(bin)/ruff format

test: lint  ## lint, then every test but the slow ones
	@$(pytest) $(ARGS)

test-all: lint  ## lint, then every test
	@$(pytest) -m '' $(ARGS)

bench: setup  ## measure every goal (ARGS=--quick: at most a minute for each area)
	@$(bin)/python -m benchmarks all $(ARGS)

clean:  ## remove .venv and every cache
	@rm -rf .venv .venv-flower .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
