# `make` lists the targets. Every target makes the environment first; after that, make only compares time stamps.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.complete
export PATH := $(CURDIR)/$(BIN):$(PATH)

$(ENV): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps -e .
	touch $@
