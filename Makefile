# `make demo` tries the engine, `make test` checks it; both set up what they need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
# Editable, so Python sources are live; the C++ sources are rebuilt when they change.
INSTALL = test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo docs test

demo: $(VENV)/.viv1t-installed
	$(BIN)/viv1t-train --demo

test: $(VENV)/.viv1t-test-installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# The site, in `site/`.
docs: $(VENV)/.viv1t-test-installed
	$(BIN)/python -m mkdocs build --strict

$(VENV)/.viv1t-installed: $(SOURCES)
	$(INSTALL) .
	touch $@

# With every extra, so that the tests of optional parts run.
$(VENV)/.viv1t-test-installed: $(SOURCES)
	$(INSTALL) '.[dali,dev,docs,lab,onnx,submission,tensorboard,test,triton,video,wandb]'
	touch $@ $(VENV)/.viv1t-installed
