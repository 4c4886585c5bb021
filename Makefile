# Everything that a person does often, in one command each. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Exact versions. `make … CONSTRAINTS=` takes the newest ones that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format lab clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## make .venv and install everything into it

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; assert (3, 11) <= v <= (3, 13), f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; name one with make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	touch $@

demo: install  ## train FPN and AugFPN at the micro scale and write runs/demo/report/index.html
	$(BIN)/python pipelines/demo.py

test: install  ## run the tests
	$(BIN)/python -m pytest -m 'not slow'

test-slow: install  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: install  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: install  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir .

clean:  ## remove what was built and cached, but no runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
