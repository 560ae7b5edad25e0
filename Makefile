# What a person types here. `make help` lists it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PHASE = $(BIN)/python scripts/phase.py
BUF := node_modules/.bin/buf
ARGS ?=

.PHONY: help demo test lint format stubs baseline clean python environment node browser
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

demo: python  ## set up and run the demo (ARGS="--json out.json")
	@$(PYTHON) scripts/environment.py bundle,tune,cloud
	@$(BIN)/cascade demo $(ARGS)

test: lint browser  ## every check, then every test (ARGS="-k name" narrows the tests)
	@$(PHASE) --stream "tests" -- $(BIN)/python -m pytest $(ARGS)

lint: environment node  ## every check that is not a test
	@$(PHASE) "format" -- $(BIN)/ruff format --check
	@$(PHASE) "ruff" -- $(BIN)/ruff check
	@$(PHASE) "types" -- $(BIN)/mypy
	@$(PHASE) "import layers" -- $(BIN)/lint-imports
	@$(PHASE) "stubs are current" -- $(BIN)/python scripts/generate_stubs.py --check
	@$(PHASE) "wire contract: lint" -- $(BUF) lint proto
	@$(PHASE) "wire contract: compatible" -- $(BUF) breaking proto --against proto/baseline.binpb

format: environment  ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format

stubs: environment  ## write the stubs of proto/
	@$(BIN)/python scripts/generate_stubs.py

baseline: node  ## accept the wire contract as it is now as the one not to break
	@$(BUF) build proto --exclude-source-info --output proto/baseline.binpb

clean:  ## remove what the targets above made in this folder; models stay where they are
	@rm -rf .venv node_modules build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find cascade cloud edge scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@test -n "$(PYTHON)" || { echo "missing: Python 3.11 or newer; CONTRIBUTING.md lists what is needed" >&2; exit 1; }

environment: python
	@$(PYTHON) scripts/environment.py all,dev

node: python
	@$(PYTHON) scripts/environment.py --node

browser: python
	@$(PYTHON) scripts/environment.py --browser
