PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: all demo test docs benchmark clean

all: test docs

# torch alone first: the second call then finds the pinned version in place and cannot pick another.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,demo,docs]"
	touch $@

.venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/digits.py --out digits.png

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

# Half an hour or more. Trained weights and results are kept in .benchmarks.
benchmark: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps rebasin torchview graphviz
	$(BIN)/python benchmarks/digits.py --cache .benchmarks

clean:
	rm -rf .venv site dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
