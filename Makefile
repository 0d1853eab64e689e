PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: all demo test docs benchmark coverage clean

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

# Hours. Trained weights and results are kept in .benchmarks, so that an interrupted run goes on.
DATA ?= ../shared/data

benchmark: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps rebasin==0.0.47 torchview graphviz
	$(BIN)/python benchmarks/matching.py --cache .benchmarks --page docs/benchmarks.md
	$(BIN)/python benchmarks/recovery.py --cache .benchmarks --page docs/benchmarks.md
	$(BIN)/python benchmarks/optima.py --cache .benchmarks --data $(DATA) --page docs/benchmarks.md
	$(BIN)/python benchmarks/barriers.py --cache .benchmarks --data $(DATA) --page docs/benchmarks.md
	$(BIN)/python benchmarks/repair.py --cache .benchmarks --data $(DATA) --page docs/benchmarks.md \
		--picture docs/images/cifar-repair.png
	$(BIN)/python benchmarks/paths.py --page docs/benchmarks.md
	$(BIN)/python benchmarks/digits.py --cache .benchmarks

# Models of the zoo, in an environment of their own: its pins, and no package beside torch's CPU build pulls in another.
ZOO ?= ../shared/zoo
ZOO_BIN := .zoo-venv/bin
ZOO_STAMP := .zoo-venv/.installed

$(ZOO_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .zoo-venv
	$(ZOO_BIN)/python -m pip install --quiet -c constraints.txt torch
	$(ZOO_BIN)/python -m pip install --quiet -c constraints.txt \
		numpy scipy networkx einops hypothesis requests tqdm transformers==5.23.0
	$(ZOO_BIN)/python -m pip install --quiet --no-deps \
		torchvision==0.28.0 diffusers==0.42.1 pillow importlib_metadata zipp
	$(ZOO_BIN)/python -m pip install --quiet --no-deps rebasin==0.0.47 torch-pruning==1.6.1 torchview graphviz
	$(ZOO_BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

# Hours. What is measured is kept in .coverage-zoo, so that an interrupted run goes on.
coverage: $(ZOO_STAMP)
	$(ZOO_BIN)/python benchmarks/coverage.py --zoo $(ZOO) --cache .coverage-zoo --out docs/coverage.md

clean:
	rm -rf .venv .zoo-venv site dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
