# Everything a newcomer needs: `make demo` and `make test`. Both make .venv from the lock file first.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up test check format lint types bench lock proto grafana clean

help:  ## show the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "otel-metering needs Python 3.11 or newer, and $(PYTHON) is older; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into .venv from requirements.lock ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP)  ## the whole pipe on real input; ARGS=--exit to leave when done
	@$(BIN)/otel-metering demo $(ARGS)

up: $(STAMP)  ## receiver and query API in one process, data in ./data
	@$(BIN)/otel-metering up --data-dir data $(ARGS)

test: $(STAMP)  ## all tests; ARGS=--long for the long forms
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: format lint types test  ## what CI runs

format: $(STAMP)  ## formatting, checked
	@$(BIN)/ruff format --check .

lint: $(STAMP)  ## lint and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

types: $(STAMP)  ## types, strict
	@$(BIN)/mypy

bench: $(STAMP)  ## measure; prints a table
	@$(BIN)/python -m bench $(ARGS)

preview: $(STAMP)  ## pictures of the dashboards in docs/images (needs Node and Chromium)
	@$(BIN)/python -m grafana.preview $(ARGS)

lock:  ## refresh requirements.lock, and those of the images (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra embedded --extra grpc --extra jwt --group dev pyproject.toml -o requirements.lock
	for extra in server embedded; do uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --constraint requirements.lock --extra $$extra pyproject.toml -o deploy/locks/$$extra.lock; done
	echo hatchling | uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --constraint requirements.lock - -o deploy/locks/build.lock

proto: $(STAMP)  ## regenerate the lazy OTLP classes
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. receiver/otlp/lazy.proto

grafana: $(STAMP)  ## dashboards, alert rules and provisioning, generated anew
	@$(BIN)/python -m grafana $(ARGS)

clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
