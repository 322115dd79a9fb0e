# `make` lists the targets. Every target sets up what it needs first; when nothing changed, that
# costs a few milliseconds. PYTHON=/path/to/python3 names the Python for .venv; ARGS goes to the
# command behind run, demo, simulate, storm, bench, lock and unit.

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:
export PYTHON

BIN := .venv/bin
# What `make simulate` runs; `make simulate SEEDS=1 FIRST=4711` replays one seed.
SEEDS := 1000
FIRST := 1
STORMS := 1
# One file's tests stay in one process, so that what a file shares is made once; the order of the
# files is that of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -W error -q
# Images that switch compiled files off would have every process compile Mana anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-runtime run demo quick check test unit lint simulate storm bench lock format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with everything, development tools included
	@sh tools/setup dev

setup-runtime:
	@sh tools/setup runtime

run: setup-runtime ## start Mana on this machine (ARGS=…)
	@$(BIN)/mana up $(ARGS)

demo: setup-runtime ## play the main job on a throw-away instance (ARGS=--json)
	@$(BIN)/mana demo $(ARGS)

lint: setup ## style, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup ## the tests that are not slow and need no database (ARGS=…)
	$(PYTEST) -m "not slow and not postgres" --durations=5 --durations-min=1 $(ARGS)

quick: lint unit ## what every commit passes, in a minute at most

check: lint ## everything: lint, and all tests, the docs' included
	$(PYTEST) --durations=10 --durations-min=2

test: setup ## set up all that is missing, browser and promtool too, then `check`
	@$(BIN)/python -m tools.browser
	@$(BIN)/python -m tools.promtool
	@$(MAKE) check

simulate: setup ## a seeded world of devices, hub, bad networks and crashes (SEEDS=1000 FIRST=1)
	@$(BIN)/python -m mana.testing.simulator --seeds $(SEEDS) --first $(FIRST) $(ARGS)

storm: setup ## real runners and PostgreSQL while everything breaks (STORMS=1 FIRST=1 ARGS=…)
	@$(BIN)/python -m tests.faults --seeds $(STORMS) --first $(FIRST) $(ARGS)

bench: setup ## measure; prints ratios (ARGS=…)
	$(BIN)/python -m bench $(ARGS)

lock: setup ## write requirements/ anew from pyproject.toml (ARGS=--upgrade)
	sh tools/lock $(ARGS)

format: setup ## format, and mend what can be mended
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and builds; a person's data is elsewhere
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
