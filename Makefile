# make train    installs into .venv and trains FC BVAE on scikit-learn's digits (under 2 minutes, no download)
# make test     lint, tests, and the README's Python blocks

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

.PHONY: train test lint install clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

train: install
	$(BIN)/python scripts/train.py --dataset digits --batch-size 64 --epochs 60

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build *.egg-info
