# One virtual environment inside the checkout serves every target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Modules of tests beside each other, on two cores as on many; threads that wait for others leave the core to them.
PARALLEL := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test check check-all docs clean

demo: $(READY)
	$(BIN)/atlasnet demo -o demo

test: $(READY)
	$(PARALLEL)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_rooms.py

# Everything that takes minutes rather than seconds: full seed counts, kills at random instants.
check-all: check
	$(PARALLEL) -m "slow or not slow"

# A broken link, a name in a docstring that is no more, or any other warning fails the build.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) demo docs/_build

# torch comes first and alone: an exact version keeps pip from choosing a newer build with its accelerator packages.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AtlasNet needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps highdicom
	touch $(READY)
