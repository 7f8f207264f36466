# Two promises: `make demo` runs the main job on a local control plane, `make test` passes all tests.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
UV := .cache/uv/bin/uv
UV_VERSION := 0.13.9
DEMO := .venv-demo/bin
DEV := .venv/bin
PYTEST_ARGS ?=
COMPILE := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml

.PHONY: help demo finetune-demo control-plane test quick lint types contracts manifests manifests-check locks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: $(PYTHON) is older than 3.11; say make PYTHON=/path/to/python3.11")'
	@echo "installing uv $(UV_VERSION) into .cache/uv"
	@$(PYTHON) -m venv .cache/uv && .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# $(call environment,FOLDER,LOCK): a virtual environment that holds exactly what the lock says, and this package editable
define environment
@test -d $(1) || $(UV) venv --quiet --python $(PYTHON) $(1)
@$(UV) pip sync --quiet --python $(1)/bin/python --require-hashes requirements/$(2).txt
@$(UV) pip install --quiet --python $(1)/bin/python --no-deps --no-build-isolation --editable .
@touch $(1)/.ready
endef

.venv-demo/.ready: pyproject.toml requirements/demo.txt | $(UV)
	@echo "preparing the environment of the demo (no torch)"
	$(call environment,.venv-demo,demo)

.venv/.ready: pyproject.toml requirements/dev.txt | $(UV)
	@echo "preparing the environment of the tests (with torch: 5.4 GB, once)"
	$(call environment,.venv,dev)

demo: .venv-demo/.ready  ## the closed loop on a local control plane: make demo [TRACE=file] [CONTEXT=cluster] [SECONDS=240]
	$(DEMO)/python -m understudy_demo $(if $(TRACE),--trace $(TRACE)) $(if $(CONTEXT),--context $(CONTEXT)) $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

finetune-demo: .venv/.ready  ## a workload's own policy from its history: make finetune-demo [HISTORY=file] [CAPACITY_RPS=20]
	@rm -rf out/finetune-demo
	$(DEV)/understudy train --finetune $(if $(HISTORY),--history $(HISTORY),--generated-history) \
		--capacity-rps $(or $(CAPACITY_RPS),20) --folder out/finetune-demo --name own --processes 2 $(ARGS)

control-plane: .venv/.ready  ## build etcd, kube-apiserver, kube-controller-manager and Prometheus into the cache
	$(DEV)/python -m understudy_demo.controlplane.binaries

test: lint types contracts manifests-check control-plane  ## everything that must hold before a commit lands
	$(DEV)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

quick: .venv/.ready  ## the inner loop, under three minutes
	$(DEV)/python -m pytest -n 2 -m "not slow and not cluster" $(PYTEST_ARGS)

lint: .venv/.ready  ## style and docstrings
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .

types: .venv/.ready  ## mypy, strict on the decision program
	$(DEV)/mypy --strict -p understudy_policy
	$(DEV)/mypy -p understudy_simulator -p understudy_trainer -p understudy_operator -p understudy_demo

contracts: .venv/.ready  ## imports point one way only
	$(DEV)/lint-imports

manifests: .venv/.ready  ## generate the CRDs from the models
	$(DEV)/python -m understudy_policy.crd --out manifests/crds

manifests-check: .venv/.ready  ## the committed CRDs are what the models say
	$(DEV)/python -m understudy_policy.crd --out manifests/crds --check

locks: | $(UV)  ## resolve the requirement files anew
	$(COMPILE) --extra operator -o requirements/operator.txt
	$(COMPILE) --extra operator --extra demo --extra build -o requirements/demo.txt
	$(COMPILE) --extra trainer -o requirements/trainer.txt
	$(COMPILE) --all-extras -o requirements/dev.txt

clean:  ## remove environments, caches and outputs
	rm -rf .venv .venv-demo .cache demo-out out .pytest_cache .mypy_cache .ruff_cache .hypothesis
