# Each target works from a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test test-avx2 lint format bench clean

help:
	@echo "make quickstart   install, build eight corpora, train one model on them, evaluate, report"
	@echo "make test         install what tests need, run them (under 20 minutes on 2 cores)"
	@echo "make test-avx2    tests of convolutions as a CPU without AVX-512 runs them"
	@echo "make lint         lint, format and type checks"
	@echo "make bench        run every benchmark and draw one figure"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mmtrain needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# A second call goes on where a kill left the first.
quickstart: $(VENV)/installed
	$(BIN)/mmtrain quickstart --resume

# Two processes: what needs the Ray cluster in the one, in order; all else wherever there is room.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

# oneDNN then takes the kernels of a desktop's CPU, whatever this one has.
test-avx2: $(VENV)/installed-dev
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest tests/mmtrain/models/test_resnet.py \
	  tests/mmtrain/pruning/test_slicing.py tests/mmtrain/layers/test_grid.py \
	  tests/mmtrain/layers/test_conv.py tests/mmtrain/layers/test_strided.py \
	  tests/mmtrain/modalities

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
