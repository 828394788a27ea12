# Two commands do everything: `make search` and `make test`. Both set up .venv first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ARGS ?=

.PHONY: search test lint clean

search: $(VENV)/.search
	$(BIN)/python search.py --objectives acc,flops $(ARGS)

# ARGS="--cov=autodistil_search" measures coverage, which takes half as long again.
test: $(VENV)/.test lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.search: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart]'
	touch $@

$(VENV)/.test: $(VENV)/.search
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
