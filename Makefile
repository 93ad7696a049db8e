# The Python that makes the environment, the lineage of mmengine, mmcv and mmdet (openmmlab, or onedl: the maintained
# forks), the environment's folder, and a torch version (empty: the installed ones, or the defaults of
# tools/setup_env.py).
PYTHON ?= python3
LINEAGE ?=
VENV ?= $(if $(filter onedl,$(LINEAGE)),.venv-onedl,.venv)
TORCH ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test quick lint sanitize clean

help:
	@echo 'make demo    train a tiny detector with optimal-transport matching and show its AP and pictures'
	@echo 'make test    run the tests, one process a core; ARGS="-k losses -x" goes to pytest (-n 0: one process)'
	@echo 'make quick   run the fast tests: those that train nothing and start no other process'
	@echo 'make lint    check style, format and types: ruff, mypy, clang-format'
	@echo 'make sanitize  run the tests of the compiled part under the address and undefined-behaviour sanitizers'
	@echo 'make env     make the Python environment in $(VENV) (the others do this first, if it is missing)'
	@echo 'make clean   remove build products and work_dirs'
	@echo 'Variables: PYTHON=python3.11  VENV=.venv  TORCH=2.13.0  LINEAGE=onedl (the maintained forks, in .venv-onedl)'

env:
	@$(PYTHON) tools/setup_env.py --venv '$(VENV)' $(if $(LINEAGE),--lineage '$(LINEAGE)') $(if $(TORCH),--torch '$(TORCH)')

demo: env
	@'$(VENV)/bin/python' tools/train.py configs/color_boxes/gfl_tiny_soft.py --work-dir work_dirs/demo $(ARGS)
	@'$(VENV)/bin/python' tools/show_run.py work_dirs/demo

test: env
	@OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -n auto --dist worksteal $(ARGS)

quick: env
	@OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -m 'not slow' -n auto $(ARGS)

lint: env
	@'$(VENV)/bin/python' -m ruff check .
	@'$(VENV)/bin/python' -m ruff format --check .
	@'$(VENV)/bin/python' -m mypy
	@'$(VENV)/bin/clang-format' --dry-run -Werror $(wildcard uotod_mmdet/csrc/*)

# A copy of the package whose compiled part has the sanitizers. Their runtime must be loaded first, and libstdc++ with
# it, whose exceptions the runtime intercepts. The package works without its compiled part, so this fails by itself
# where that could not be built with the sanitizers or is not the one that is loaded. setuptools reads CFLAGS or
# CXXFLAGS, depending on its version.
SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1
SANITIZED = $(CURDIR)/build/sanitize/lib
SANITIZER = LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH='$(SANITIZED)' PYTHONSAFEPATH=1
LOADED = import uotod_mmdet.losses, uotod_mmdet.ot; print(open("/proc/self/maps").read())
sanitize: env
	@rm -rf build/sanitize
	@CFLAGS='$(SANITIZE)' CXXFLAGS='$(SANITIZE)' LDFLAGS='$(SANITIZE)' '$(VENV)/bin/python' setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	@grep -q __asan_init '$(SANITIZED)'/uotod_mmdet/_native*.so || \
		{ echo 'make sanitize: the compiled part was not built with the sanitizers (see above).' >&2; exit 1; }
	@cd '$(SANITIZED)' && $(SANITIZER) '$(abspath $(VENV))/bin/python' -c '$(LOADED)' | grep -F '$(SANITIZED)/uotod_mmdet/_native' > /dev/null || \
		{ echo 'make sanitize: the compiled part with the sanitizers is not loaded (is UOTOD_NATIVE=0 set?).' >&2; exit 1; }
	@$(SANITIZER) '$(VENV)/bin/pytest' -p no:cacheprovider tests/test_native.py $(ARGS)

clean:
	rm -rf build dist work_dirs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find uotod_mmdet configs tools tests -name __pycache__ -prune -exec rm -rf {} +
