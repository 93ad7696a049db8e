# The Python that makes the environment, the environment's folder, and a torch version (empty: the installed one, or
# the default of tools/setup_env.py).
PYTHON ?= python3
VENV ?= .venv
TORCH ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test lint clean

help:
	@echo 'make demo    train a tiny detector with optimal-transport matching and show its AP and pictures'
	@echo 'make test    run the tests; ARGS="-k losses -x" goes to pytest'
	@echo 'make lint    check style and format with ruff'
	@echo 'make env     make the Python environment in $(VENV) (the others do this first, if it is missing)'
	@echo 'make clean   remove build products and work_dirs'
	@echo 'Variables: PYTHON=python3.11  VENV=.venv  TORCH=2.13.0'

env:
	@$(PYTHON) tools/setup_env.py --venv '$(VENV)' $(if $(TORCH),--torch '$(TORCH)')

demo: env
	@'$(VENV)/bin/python' tools/train.py configs/color_boxes/gfl_tiny_soft.py --work-dir work_dirs/demo $(ARGS)
	@'$(VENV)/bin/python' tools/show_run.py work_dirs/demo

test: env
	@'$(VENV)/bin/python' -m pytest $(ARGS)

lint: env
	@'$(VENV)/bin/python' -m ruff check .
	@'$(VENV)/bin/python' -m ruff format --check .

clean:
	rm -rf build dist work_dirs *.egg-info .pytest_cache .ruff_cache .hypothesis
	find uotod_mmdet configs tools tests -name __pycache__ -prune -exec rm -rf {} +
