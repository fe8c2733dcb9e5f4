# Each target makes its own virtual environment on first use; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Two files of tests at a time, each on one thread: networks this small gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all test-slurm test-hosts test-kills test-scale test-tracking lint format clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"medloom needs Python 3.11 or newer, this is {sys.version}: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the whole way on built-in phantoms, in minutes on two CPU cores
	$(BIN)/medloom demo --out runs/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint  ## lint, types and the tests that fit a coffee break
	$(PYTEST) -m "not slow"

test-all: lint  ## also the long ones (kill and resume, peers)
	MEDLOOM_NEW_EXAMPLES=1 $(PYTEST)

# As root, what a cluster test needs is installed; otherwise, or without apt, the test says what is missing.
define needs
	command -v $(1) >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -y --no-install-recommends $(2); } || true
endef

test-slurm: $(STAMP)  ## a real SLURM of two virtual nodes: preemption, time limit, exit status, job arrays
	$(call needs,slurmctld,slurm-wlm munge iproute2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/cluster

test-hosts: $(STAMP)  ## torchrun on two network namespaces, and a link that goes down
	$(call needs,ip,iproute2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hosts tests/cluster

test-kills: $(STAMP)  ## 100 random kills of a run of two ranks: the same samples, rows and weights (half an hour)
	$(BIN)/python -m benchmarks.kills --kills 100 --work runs/kills

test-scale: $(STAMP)  ## two ranks against one, replicated and sharded: losses, gradients, checkpoints
	$(PYTEST) tests/pretrain/test_scale*.py tests/pretrain/test_ranks.py tests/pretrain/test_two_ranks.py

test-tracking: $(STAMP)  ## trackers read back, and a server on the loopback that is slow, dead or dies
	$(PYTEST) tests/pretrain/test_track*.py tests/pretrain/test_wandb_server.py tests/finetune/test_mirror.py \
		tests/configs/test_every_sweep.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
