# `make demo` tries the engine, `make test` checks it; both set up what they need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.viv1t-installed

.PHONY: demo test

demo: $(STAMP)
	$(BIN)/viv1t-train --demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Editable, so Python sources are live; the C++ sources are rebuilt when they change.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dali,dev,onnx,submission,tensorboard,test,triton,video,wandb]'
	touch $@
