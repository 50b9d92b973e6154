# `make` lists the targets. Each sets .venv up first, which takes some minutes once; with
# PYTHON=/path/to/python it uses that environment instead and installs nothing.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL: # two set-ups at once would get into each other's way
.PHONY: help setup demo test test-slow test-fork test-oldest test-torch lint docs figures clean

# OpenMP threads that wait should sleep: spinning, they slow training many times over wherever
# another process needs the core.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

# The tests of other versions of Python and torch do without detectors, which need mmcv's operators.
TORCH_ENV = .venv-torch-$(TORCH)-$(notdir $(or $(PYTHON),python3))
TORCH_TESTS = $$(grep -rLE 'mmdet|tiny_runs|config_models|demo' tests --include='test_*.py')

RUN_NEEDS := torch torchvision mmengine mmcv.ops mmdet mmpretrain sklearn matplotlib
TEST_NEEDS := pytest xdist tensorboard safetensors timm mim
# A process per core, up to four, as each takes about 1 GB. Each test file stays in one of them;
# PYTEST_ARGS=-n0 leaves it at one process.
PYTEST = OMP_NUM_THREADS=1 "$(PY)" -m pytest -n auto --maxprocesses 4 --no-loadscope-reorder

ifdef PYTHON
PY := $(PYTHON)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
prepare = @command -v "$(PY)" >/dev/null || { echo 'PYTHON=$(PY): no such program; give the path \
of a Python interpreter, such as PYTHON=/path/to/env/bin/python' >&2; exit 1; }; \
"$(PY)" tools/check_env.py $(1)
else
PY := .venv/bin/python
prepare = @bash tools/setup_env.sh
endif

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20
	@echo 'PYTHON=/path/to/python uses an environment that you have already.'

setup: ## install everything into .venv
	$(call prepare,$(RUN_NEEDS))

demo: ## pretrain, fine-tune and evaluate on handwritten digits (options: DEMO_ARGS=...)
	$(call prepare,$(RUN_NEEDS))
	"$(PY)" tools/demo.py $(DEMO_ARGS)

test: ## run the tests (options: PYTEST_ARGS=...)
	$(call prepare,$(RUN_NEEDS) $(TEST_NEEDS))
	$(PYTEST) $(PYTEST_ARGS)

test-slow: ## run the slow tests, which `make test` leaves out
	$(call prepare,$(RUN_NEEDS) $(TEST_NEEDS))
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-fork: PY := .venv-fork/bin/python
test-fork: ## run the tests with the maintained fork of OpenMMLab, in .venv-fork
	@bash tools/setup_env.sh onedl
	$(PYTEST) $(PYTEST_ARGS)

test-oldest: PY := .venv-oldest/bin/python
test-oldest: ## run the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	@bash tools/setup_env.sh oldest
	$(PYTEST) $(PYTEST_ARGS)

# torch 2.x goes with torchvision 0.(x + 15). mmcv-lite has all of mmcv but the operators.
test-torch: PY = $(TORCH_ENV)/bin/python
test-torch: ## run the tests without detectors with another torch or Python, such as TORCH=2.1.2 PYTHON=python3.9
	@[[ "$(TORCH)" == 2.* ]] || { echo 'TORCH=$(TORCH): give a version, such as TORCH=2.1.2' >&2; exit 1; }
	@set -e; [[ -f $(TORCH_ENV)/.complete ]] || { \
		minor=$$(cut -d. -f2 <<<'$(TORCH)'); \
		"$(or $(PYTHON),python3)" -m venv $(TORCH_ENV); \
		sed -nE 's/^mmcv=/mmcv-lite=/; /^(mmengine|mmcv-lite|mmpretrain|setuptools)=/p' \
			requirements/tested.txt >$(TORCH_ENV)/requirements.txt; \
		$(TORCH_ENV)/bin/python -m pip install -r $(TORCH_ENV)/requirements.txt 'torch===$(TORCH)' \
			"torchvision==0.$$((minor + 15)).*" $$( ((minor > 2)) || echo 'numpy<2') -e '.[test]'; \
		touch $(TORCH_ENV)/.complete; }
	PYTHONPATH='$(CURDIR)' $(PYTEST) $(TORCH_TESTS) $(PYTEST_ARGS)

lint: ## check style and formatting with ruff, and types with mypy
	$(call prepare,ruff mypy)
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	"$(PY)" -m mypy

docs: ## build the documentation into docs/_build; warnings are errors
	$(call prepare,$(RUN_NEEDS) sphinx myst_parser furo sphinx_copybutton)
	PYTHONPATH='$(CURDIR)' "$(PY)" -m sphinx -W --keep-going -q -b html docs docs/_build/html

figures: ## draw the pictures of the documentation again
	$(call prepare,$(RUN_NEEDS))
	"$(PY)" docs/draw_figures.py

clean: ## remove caches; keeps .venv, data and work_dirs
	find mmkw configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .mypy_cache docs/_build
