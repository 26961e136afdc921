# Two commands for a new machine: `make run` and `make test`. Both install into .venv first.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.stamp
KERNEL := $(wildcard xenpv/abi/build.py xenpv/abi/decl/*.h xenpv/abi/kernel/*.[ch] \
                     xenpv/bench/build.py xenpv/bench/*.[ch])
INSTALL_ON := pyproject.toml setup.py $(filter-out xenpv/abi/_kernel.c xenpv/bench/_limit.c,$(KERNEL))
SANITIZED := build/sanitize

.PHONY: help run test bench lint types stubs docs sanitize zoo package dist soak clean

help:
	@echo 'make run       install, make disk images, run the guests of examples/*.cfg on them'
	@echo 'make test      install, run all tests'
	@echo 'make bench     measure beside the limits'
	@echo 'make lint      ruff: rules and format'
	@echo 'make types     mypy --strict'
	@echo 'make stubs     the type stubs of the C modules, from what is built'
	@echo 'make docs      the pages of docs/ as HTML, in build/docs; a warning is an error'
	@echo 'make sanitize  the tests of the C kernel, built with AddressSanitizer and UBSan'
	@echo 'make zoo       the kit against every known defect, 15 s of CPU each at most'
	@echo 'make package   sdist and wheel into dist/, and checks of both without a compiler'
	@echo 'make soak      the long tests, and the zoo with its default settings: hours'
	@echo 'make clean     remove what the others made'

run: $(STAMP)-run
	@$(BIN)/python examples/make_image.py examples/images
	$(BIN)/xenpv run examples/*.cfg

test: $(STAMP)-dev
	$(BIN)/python -m pytest -q -n $(WORKERS)

bench: $(STAMP)-run
	$(BIN)/xenpv bench

lint: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)-dev
	$(BIN)/mypy

docs: $(STAMP)-dev
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs || \
	    { rm -rf build/doctrees; exit 1; }  # a page that was read is not warned of again
	@echo build/docs/index.html

# The types of the C modules, after a change of what they declare.
stubs: $(STAMP)-dev
	$(BIN)/python -m xenpv.abi.stub xenpv.abi._kernel xenpv/abi/kernel/kernel.h >.venv/stub
	mv .venv/stub xenpv/abi/_kernel.pyi
	$(BIN)/python -m xenpv.abi.stub xenpv.bench._limit xenpv/bench/limit.h xenpv/bench/client.h >.venv/stub
	mv .venv/stub xenpv/bench/_limit.pyi

# A copy of its own, so that the sanitized kernel never replaces the one in use. Python itself
# is not instrumented: libasan is preloaded, and what the interpreter never frees is no leak.
sanitize: $(STAMP)-dev
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	cp -R pyproject.toml setup.py Makefile README.md LICENSE _xenpv_*.py xenpv tests $(SANITIZED)
	find $(SANITIZED)/xenpv \( -name '*.so' -o -name '*.o' \) -delete
	cd $(SANITIZED) && XENPV_SANITIZE=address,undefined \
	    $(CURDIR)/$(BIN)/python -m pip install -q --no-deps --target built .
	for room in abi bench; do \
	    cp $(SANITIZED)/built/xenpv/$$room/*.so $(SANITIZED)/xenpv/$$room/ || exit 1; \
	done
	cd $(SANITIZED) && LD_PRELOAD="$$(cc -print-file-name=libasan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    PYTHONMALLOC=malloc \
	    $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider tests/abi tests/xen \
	        tests/back/test_blkring.py tests/back/test_blkfile.py

zoo: $(STAMP)-dev
	$(BIN)/xenpv zoo --seconds 15 --examples 30000 --jobs $(WORKERS)

# The wheel is built from the sdist, by tools that pip fetches into an environment of their own.
dist: $(STAMP)-dev
	rm -rf dist
	$(BIN)/python -m build -o dist .

package: dist
	$(BIN)/python -m pytest -q -m package tests/package

soak: $(STAMP)-dev
	$(BIN)/xenpv zoo --jobs $(WORKERS)
	$(BIN)/xenpv zoo --off --examples 200000
	$(BIN)/python -m pytest -q -m soak

clean:
	rm -rf .venv build dist *.egg-info examples/images .benchmarks .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage
	rm -f xenpv/abi/_kernel.c xenpv/bench/_limit.c
	find docs xenpv tests examples -name '__pycache__' -prune -exec rm -rf {} +
	find xenpv \( -name '*.so' -o -name '*.o' \) -delete

# The one of the two that is newer than its inputs is enough: dev has all that run needs.
$(STAMP)-run: $(INSTALL_ON)
	@$(MAKE) -s --no-print-directory .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[cli]'
	@touch $@

$(STAMP)-dev: $(INSTALL_ON)
	@$(MAKE) -s --no-print-directory .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[cli,dev,docs]'
	@touch $@ $(STAMP)-run

# What pip cannot bring along, named before it fails in its own words.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'xenpv needs Python 3.11 or newer: apt-get install python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'Python has no venv: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; \
	    sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || \
	    { echo 'The Python headers are missing: apt-get install python3-dev' >&2; exit 1; }
	@echo 'int main(void) { return 0; }' | cc -x c - -o /dev/null 2>/dev/null || \
	    { echo 'No working C compiler: apt-get install gcc libc6-dev' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --version
