# Two commands: `make demo` and `make test`. Each makes .venv first; a second call starts at once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo lab test check format bench clean

help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Make .venv and install depin-nb into it

LAB     := $(wildcard labextension/src/* labextension/style/* labextension/*.json) labextension/build.mjs

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(LAB)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "depin-nb needs Python 3.11 or newer (PYTHON=python3.11 make ...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (torch is large: a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@test -e $(VENV)/share/jupyter/labextensions/depin-nb || echo "The JupyterLab sidebar was left out (it is built with npm); everything else works."
	@touch $@

demo: $(STAMP)  ## Execute the quickstart notebook and print what it came to
	@$(BIN)/python notebooks/demo.py

lab: $(STAMP)  ## Open JupyterLab on the quickstart
	@$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

test: $(STAMP)  ## Run the tests
	@$(BIN)/python -m pytest tests/unit tests/conformance tests/faults/test_found.py tests/faults/test_histories.py -n logical --maxprocesses 4 --dist worksteal
	@$(BIN)/python -m pytest tests/functional tests/browser tests/faults/test_processes.py -n logical --maxprocesses 2 --dist loadfile  # one hub a file

check: $(STAMP)  ## ruff, mypy, import-linter, TypeScript
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@if command -v npm >/dev/null; then cd labextension && { test -d node_modules || npm ci --silent; } && npm run --silent check; else echo "TypeScript: skipped, npm is not installed"; fi

format: $(STAMP)  ## Format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

bench: $(STAMP)  ## List the benchmarks; each is one command
	@for f in bench/*.py; do echo "$(BIN)/python $$f"; done

clean:  ## Remove .venv and everything built
	rm -rf $(VENV) .demo build dist depin_nb/labextension labextension/node_modules
