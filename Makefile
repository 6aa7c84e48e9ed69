# Kolmo: everything from a clone.
#
#   make setup       .venv with Kolmo and its tests' tools (quick when done already)
#   make test        the quick tests                       ARGS='-k mesh' passes on to pytest
#   make test-all    the slow ones too
#   make test-compat the tests that run dolfinx, with that of Debian 12, 13 and sid, in throw-away roots
#   make lint        ruff and mypy
#   make docs        the documentation as a site, offline, into build/site
#   make reproduce   every result, into runs/reproduce     ARGS=--quick for the small version
#   make bench       seconds beside those of peers, into benchmarks/results.json  ARGS=--quick: a minute
#   make clean       removes caches, builds and .venv; runs/ stays

ARGS ?=
STAMP := .venv/.kolmo-stamp
# an interpreter that was removed since leaves a dangling link: set up again
STALE := $(shell test -x .venv/bin/python || echo again)
# as many processes as there are cores; tests keep to one thread each
PYTEST := .venv/bin/python -m pytest -n auto --dist worksteal
# folders beside kolmo/ that are its subpackages (pyproject.toml, package-dir)
SUBPACKAGES := pde control experiments benchmarks
# mypy knows nothing of package-dir: it reads this tree of links instead
TYPES := build/types

.DEFAULT_GOAL := help
.PHONY: help setup test test-all test-compat lint docs reproduce bench clean again

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup $(STALE)
	@scripts/setup

test: setup
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: setup
	$(PYTEST) $(ARGS)

test-compat:
	scripts/test-compat $(ARGS)

lint: setup
	.venv/bin/ruff check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/kolmo
	@ln -s $(addprefix ../../../,$(wildcard kolmo/*) $(SUBPACKAGES)) $(TYPES)/kolmo/
	cd $(TYPES) && ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p kolmo

docs: setup
	@.venv/bin/python -c 'import latex2mathml, material, mkdocstrings_handlers.python' 2>/dev/null || \
		.venv/bin/python -m pip install -q -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

reproduce: setup
	.venv/bin/kolmo reproduce --out runs/reproduce --overwrite $(ARGS)

bench: setup
	@.venv/bin/python -m pip show -q py-pde threadpoolctl 2>/dev/null || \
		.venv/bin/python -m pip install -q -e '.[bench]' -c constraints.txt || \
		echo "bench: py-pde could not be installed, its rows will be missing"
	.venv/bin/kolmo bench $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
