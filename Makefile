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

RUN_NEEDS := torch torchvision mmengine mmcv.ops mmdet mmpretrain sklearn matplotlib
TEST_NEEDS := mmseg ftfy pytest xdist tensorboard safetensors timm mim
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

# With other versions of Python or torch, the tests run that do without detectors, as those need
# mmcv's operators; mmcv-lite has the rest of it. torch 2.x goes with torchvision 0.(x + 15), and is
# compiled for NumPy 1 up to 2.2; OpenCV is for NumPy 2 from 4.12 on.
LITE_TESTS = $$(grep -rLE 'mmdet|tiny_runs|config_models|demo' tests --include='test_*.py')
# $(1): the command that prints the pins
define test_lite
@set -e; [[ -f $(ENV)/.complete ]] || { \
	"$(or $(PYTHON),python3)" -m venv $(ENV); \
	{ $(1); } >$(ENV)/pins.txt; \
	$(ENV)/bin/python -m pip install -c $(ENV)/pins.txt torch torchvision mmengine mmcv-lite \
		mmpretrain 'setuptools<82' -e '.[test]'; \
	touch $(ENV)/.complete; }
PYTHONPATH='$(CURDIR)' $(PYTEST) $(LITE_TESTS) $(SELECT) $(PYTEST_ARGS)
endef

test-oldest: ENV = .venv-oldest
test-oldest: SELECT = -m 'not slow and not gpu and not newer_torch'
test-oldest: ## run the tests without detectors with the oldest versions allowed; PYTHON=python3.9
	$(call test_lite,grep -oE '"[a-z-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/; /^setuptools/d' \
		| sed 's/^mmcv=/mmcv-lite=/'; printf '%s\n' 'numpy<2' 'opencv-python<4.12')

test-torch: ENV = .venv-torch-$(TORCH)-$(notdir $(or $(PYTHON),python3))
test-torch: ## the same with another torch or Python, such as TORCH=2.11.0 PYTHON=python3.13
	@[[ "$(TORCH)" == 2.* ]] || { echo 'TORCH=$(TORCH): give a version, such as TORCH=2.1.2' >&2; exit 1; }
	$(call test_lite,sed -nE 's/^mmcv=/mmcv-lite=/; /^(mmengine|mmcv-lite|mmpretrain|setuptools)=/p' \
		requirements/tested.txt; minor=$$(cut -d. -f2 <<<'$(TORCH)'); \
		echo 'torch===$(TORCH)'; echo "torchvision==0.$$((minor + 15)).*"; \
		((minor > 2)) || printf '%s\n' 'numpy<2' 'opencv-python<4.12')

test-oldest test-torch: PY = $(ENV)/bin/python

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
