# `make` alone lists the targets. Everything is installed into .venv, with uv if it is installed, else with pip.

PYTHON ?= python3
BACKEND ?=
BENCH ?=
SEEDS ?= 1 2
HISTORIES ?= 100

bin := .venv/bin
stamp := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test histories bench check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(stamp) ## install everything into .venv

# A stamp, because .venv itself changes with every package in it.
$(stamp): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11, or missing. Name another: make setup PYTHON=python3.12" >&2; exit 2; }
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv && \
	  uv pip install --quiet --python $(bin)/python --editable '.[dev]'; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(bin)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'; \
	fi
	@touch $@

demo: setup ## render a project, start its cluster, migrate, verify, stop (BACKEND=…)
	@$(bin)/scaffold demo $(BACKEND)

test: check ## lint, types, then every test, each variant's own included
	@$(bin)/python -m pytest

# The seed of the first history is printed with each; RANDOM_MIGRATIONS_SEED repeats it.
histories: setup ## migrate a mesh under load through random histories (HISTORIES=100)
	@rm -rf .demo/histories && $(bin)/scaffold new .demo/histories --backend pgedge --no-git >/dev/null
	@cd .demo/histories && RANDOM_MIGRATIONS=$(HISTORIES) PYTHONPATH=src $(abspath $(bin))/python -m pytest -q \
	  tests/runtime/test_random_migrations.py

test-domains: setup ## live through declared domains on real clusters (SEEDS="3 14" for random ones)
	@DOMAIN_LIVES=1 DOMAIN_SEEDS="$(SEEDS)" $(bin)/python -m pytest tests/test_domains.py

bench: setup ## measure the runtime against the alternatives (BENCH="--quick --only keys")
	@$(bin)/python -m benchmarks $(BENCH)

check: setup ## lint, format and types of our own code
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy

format: setup ## format the code and fix what the linter can fix
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

clean: ## remove .venv, demos and the caches of the tools
	@for program in .demo/*/.venv/bin/shop; do \
	  if [ -x "$$program" ]; then (cd "$${program%/.venv/bin/shop}" && .venv/bin/shop destroy) || true; fi; \
	done
	rm -rf .venv .demo .mypy_cache .pytest_cache .ruff_cache build dist
