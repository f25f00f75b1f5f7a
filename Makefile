# Each target works from a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of all tests together: five times what they take on 2 quiet cores.
TEST_LIMIT := 75m

# Prints errors, and that it goes on. PYTHONWARNINGS: setuptools warns of any editable install.
define pip-install
@(while sleep 15 && kill -0 $$$$; do echo "  still installing" >&3; done) 3>&1 >/dev/null 2>&1 & \
  PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq $(1); status=$$?; kill $$!; exit $$status
endef

.PHONY: help quickstart test test-avx2 lint format bench clean

help:
	@echo "make quickstart   install, build eight corpora, train one model on them, evaluate, report"
	@echo "make test         install what tests need, run them (20 minutes on 2 cores)"
	@echo "make test-avx2    tests of convolutions as a CPU without AVX-512 runs them"
	@echo "make lint         lint, format and type checks"
	@echo "make bench        run every benchmark and draw one figure"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mmtrain needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(BIN)/python
	@$(BIN)/python -m pip install -qq --upgrade pip
	@echo "installing mmtrain with torch, Ray, DeepSpeed and MLflow: 3 minutes, and the download"
	$(call pip-install,--editable .)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing what tests need: a minute, and the download"
	$(call pip-install,--editable '.[dev]')
	@touch $@

# A second call goes on where a kill left the first.
quickstart: $(VENV)/installed
	$(BIN)/mmtrain quickstart --resume

# Two processes: what needs the Ray cluster in the one, in order; all else wherever there is room.
test: $(VENV)/installed-dev
	timeout --foreground --kill-after 1m $(TEST_LIMIT) \
	  $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

# oneDNN then takes the kernels of a desktop's CPU, whatever this one has.
test-avx2: $(VENV)/installed-dev
	cd tests/mmtrain && ONEDNN_MAX_CPU_ISA=AVX2 timeout 15m ../../$(BIN)/python -m pytest \
	  -k 'not recipe' modalities layers/test_conv.py layers/test_grid.py layers/test_patches.py \
	  layers/test_strided.py models/test_multimodel.py models/test_resnet.py \
	  cut/test_cut_models_go_on.py masks/test_masks_of_models.py \
	  cut/test_recalibrate.py cut/test_slicing.py

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
