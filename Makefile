# make demo: set up, build the demo bundle, generate a picture.   make test: set up, run all tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE := ideogram4-bundle
SOURCES := $(shell find export model -type f -not -path '*/__pycache__/*') $(wildcard runtime/*.py)

.PHONY: demo test lint clean

demo: $(BUNDLE)/manifest.json
	$(BIN)/trt-generate --prompt "a red circle on a blue background" --seed 4 --output demo.png --overwrite

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BUNDLE)/manifest.json: $(SOURCES) | $(VENV)/.demo
	$(BIN)/python -m export.build --overwrite

# A stamp for each set of extras, renewed when the project's requirements change.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[export,ort]"
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(BUNDLE) demo.png
