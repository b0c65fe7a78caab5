# λλM: `make help` lists what there is. Needs only Python 3.11+ and make; everything else is set up in .venv.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := proto core bedrest_client restful_proxy grpc_proxy backend_lambda
SOURCES := core proto bedrest_client restful_proxy grpc_proxy backend_lambda tiny_model tools bench tests examples
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
LOCKS := train bedrest_client restful_proxy grpc_proxy backend_lambda run

.DEFAULT_GOAL := help
.PHONY: help run up chat passive test test-slow check format bench provider-table proto proto-check lock demo-model clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

run: $(VENV)/run.done  ## start the chain, talk to it (without a terminal: ask five prompts), stop it
	@$(BIN)/python tools/run.py

up: $(VENV)/run.done  ## the three servers in the foreground, logs prefixed; PROVIDER=scripted plays faults
	@$(BIN)/python tools/up.py

chat: $(VENV)/run.done  ## BedREST, interactive, against a chain that is up
	@$(BIN)/bedrest active

passive: $(VENV)/run.done  ## BedREST's five prompts, against a chain that is up
	@$(BIN)/bedrest passive

test: $(VENV)/dev.done  ## all tests but the slow ones
	@$(BIN)/python -m pytest -q -m "not slow and not browser"

test-slow: $(VENV)/dev.done  ## long fault runs
	@$(BIN)/python -m pytest -q -m slow

check: $(VENV)/dev.done proto-check  ## ruff, mypy --strict, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/lint-imports

format: $(VENV)/dev.done  ## let ruff format and mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/dev.done  ## measure the chain (minutes)
	@$(BIN)/python -m bench

provider-table: $(VENV)/dev.done  ## write the table in docs/providers.md from the tests
	@PROVIDER_TABLE=write $(BIN)/python -m pytest -q backend_lambda/tests/test_provider_contract.py

proto: $(VENV)/dev.done  ## make the stubs from llm.proto
	@cd proto && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. lambdalm_proto/v1/llm.proto

proto-check: proto  ## the stubs are those of llm.proto, and it is compatible with the baseline
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb
	@git diff --exit-code --stat -- proto/lambdalm_proto || (echo "the stubs are not those of llm.proto: commit what make proto made" && exit 1)

lock: $(VENV)/dev.done  ## pin all requirements anew
	@cd requirements && for name in dev $(LOCKS); do \
		../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
			$$([ $$name = dev ] || echo "-c dev.txt") -o $$name.txt $$name.in || exit 1; done

demo-model:  ## make the built-in model again (an hour; needs torch, which it installs in .venv-train)
	@test -n "$(PYTHON)" || (echo "Python 3.11 or newer is needed" && exit 1)
	@test -d .venv-train || $(PYTHON) -m venv .venv-train
	@.venv-train/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/train.txt
	@.venv-train/bin/python -m tiny_model.make --out backend_lambda/src/backend_lambda/models/lambdalm-demo.gguf

clean:  ## remove what was set up
	@rm -rf $(VENV) .venv-train logs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || (echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python" && exit 1)
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: requirements/run.txt $(PACKAGES:=/pyproject.toml) | $(VENV)/bin/python
	@echo "setting up .venv (once; a minute)" >&2
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation $(PACKAGES:%=-e ./%)
	@touch $@

$(VENV)/dev.done: requirements/dev.txt $(VENV)/run.done
	@echo "setting up .venv for development (once; a minute)" >&2
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@
