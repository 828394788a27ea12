# Two commands do everything: `make search` and `make test`. Both set up .venv first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ARGS ?=
# Options of pip. On Linux, torch comes with several GB of CUDA; without an NVIDIA GPU, this saves them:
#   make search PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: search test numbers lint docs clean

search: $(VENV)/.search
	$(BIN)/python search.py --objectives acc,flops $(ARGS)

# ARGS="--cov=autodistil_search" measures coverage, which takes half as long again.
test: $(VENV)/.test lint
	$(BIN)/python -m pytest $(ARGS)

# The tests of numbers with other instructions and two threads: what they assert must hold on any processor.
NUMBERS = hardware initial_weights latency_predictor layer_losses model objectives proxies \
	rank_correlation relation_loss standard_models teacher training_loop
numbers: $(VENV)/.test
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell \
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(NUMBERS:%=tests/test_%.py) $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.search: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	$(PIP) -e '.[quickstart]'
	touch $@

$(VENV)/.test: $(VENV)/.search
	$(PIP) -e '.[quickstart,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
