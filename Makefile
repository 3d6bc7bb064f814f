# make demo: set up, build the demo bundle in three precisions, generate a picture with each.   make test: set up, run all tests.
# make check: lint, types and the tests that take no exporting, for every change.   make wheel-test: the wheel, far from here.
# make fuzz: MINUTES of broken inputs.   make kills: commands killed and disks filled.   make storm: MINUTES of requests.
# make triton-demo: the same picture from the real Triton server.   make triton-test: its tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE := ideogram4-bundle
DEMO := $(BUNDLE) $(BUNDLE)-fp8 $(BUNDLE)-int8
PICTURE := --prompt "a red circle on a blue background" --seed 4 --overwrite
# Triton's wheel needs numpy<2, hence an environment of its own.
TRITON_PYTHON ?= $(PYTHON)
TRITON_VENV ?= .venv-triton
TRITON_BIN := $(TRITON_VENV)/bin
TRITON_TESTS ?= tests/triton_server
MINUTES ?= 30
SOURCES := $(shell find calibration export model runtime -type f -not -path '*/__pycache__/*')

.PHONY: demo test check lint types wheel-test fuzz kills storm triton-demo triton-test clean

demo: $(DEMO:%=%/manifest.json)
	$(BIN)/trt-generate $(PICTURE) --output demo.png
	$(BIN)/trt-generate $(PICTURE) --bundle $(BUNDLE)-fp8 --output demo-fp8.png
	$(BIN)/trt-generate $(PICTURE) --bundle $(BUNDLE)-int8 --output demo-int8.png

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

triton-demo: $(BUNDLE)/manifest.json | $(TRITON_VENV)/.triton
	$(TRITON_BIN)/python -m export.triton $(BUNDLE) --output triton-repository --stream --overwrite
	$(TRITON_BIN)/python -m scripts.triton.server triton-repository -- $(TRITON_BIN)/python -m scripts.triton.client \
	  --url {http} --stream $(PICTURE) --output triton.png

triton-test: $(BUNDLE)/manifest.json | $(TRITON_VENV)/.triton
	IDEOGRAM4_BUNDLE=$(BUNDLE) $(TRITON_BIN)/python -m pytest $(TRITON_TESTS)

check: lint types
	$(BIN)/python -m pytest -m "not slow" --quiet --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/python -m mypy

wheel-test: $(BUNDLE)/manifest.json
	.ci/wheel $(BUNDLE)

fuzz: $(VENV)/.test
	$(BIN)/python -m scripts.fuzz --minutes $(MINUTES)

kills: $(VENV)/.test
	$(BIN)/python -m scripts.interrupted

storm: $(BUNDLE)/manifest.json | $(TRITON_VENV)/.triton
	$(TRITON_BIN)/python -m scripts.triton.storm $(BUNDLE) --minutes $(MINUTES)

$(BUNDLE)/manifest.json: PRECISION := fp32
$(BUNDLE)-fp8/manifest.json: PRECISION := fp8
$(BUNDLE)-int8/manifest.json: PRECISION := int8
$(DEMO:%=%/manifest.json): $(SOURCES) | $(VENV)/.demo
	$(BIN)/python -m export.build --precision $(PRECISION) --output $(@D) --overwrite

# One stamp per set of extras; it is renewed when the requirements in pyproject.toml change.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[export,ort]"
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.demo

$(TRITON_VENV)/.triton: pyproject.toml | $(TRITON_BIN)/python
	$(TRITON_BIN)/python -m pip install --quiet --editable ".[ort,triton]" "pytest>=8"
	touch $@

$(TRITON_BIN)/python:
	$(TRITON_PYTHON) -m venv $(TRITON_VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(TRITON_VENV) $(DEMO) triton-repository demo*.png triton.png
