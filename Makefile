# `make` or `make help` lists what can be done. Needs Python 3.11 or newer, git and make; the rest goes into .venv.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
URL ?= http://127.0.0.1:8000
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test e2e test-gpu bench-gpu lint types layers format bench lock clean

help: ## show this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

# One stamp file for each installed set, so that it is installed once and again when what it is made from changes.
$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "Tandem needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[demo]'
	@touch $@

# With bytecode: tests start over a hundred Python processes, and where PYTHONDONTWRITEBYTECODE is set (in containers it
# often is) each of them would compile torch again, which is most of a start.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev ## install everything a developer needs into .venv

demo: $(VENV)/.demo ## chat model, prefill and decode on this machine; MODEL=folder or ORG/NAME, PORT=8000, ARGS=more flags
	@$(BIN)/tandem demo $(if $(MODEL),--model=$(MODEL)) $(if $(PORT),--port=$(PORT)) $(ARGS)

test: $(VENV)/.dev ## every test that needs neither a GPU nor a cluster; ARGS=pytest's
	@$(BIN)/python -m tandem_runtime.local.demo_model
	$(BIN)/pytest -m 'not gpu' $(ARGS)

e2e: $(VENV)/.dev ## the tests on a real Kubernetes: that of E2E_KUBECONFIG, else a throwaway one here (root); ARGS=pytest's
	@e2e/run $(ARGS)

test-gpu: $(VENV)/.dev ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu $(ARGS)

bench-gpu: $(VENV)/.dev ## steps, servers and kernels beside their floors, on a CUDA device; ARGS=parts, --list
	$(BIN)/python benchmarks/gpu/run.py $(ARGS)

lint: $(VENV)/.dev ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## strict types of every package
	$(BIN)/mypy

layers: $(VENV)/.dev ## who may import whom
	$(BIN)/lint-imports

format: $(VENV)/.dev ## repair what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.demo ## measure the server at URL (make demo's by default); ARGS=more flags of tandem bench serve
	$(BIN)/tandem bench serve --base-url=$(URL) --workload=128:64 --concurrency=8 --num-prompts=32 $(ARGS)

lock: | $(BIN)/uv ## choose the newest allowed versions and write constraints.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-emit-index-url \
		--no-annotate --custom-compile-command 'make lock' --output-file constraints.txt pyproject.toml

clean: ## remove the environment, caches and build results
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
