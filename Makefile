# make train    installs into .venv and trains FC BVAE on scikit-learn's digits (under 2 minutes, no download)
# make test     lint, then the first tier of tests, on every processor; the README's Python blocks are among them
# make test-all the second tier: what takes long
# make gpu-check a first run on GPUs, about ten minutes: a table to paste into an issue (docs/distributed.md)
# make docs     the reference of the package, from its docstrings: build/docs/index.html

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin

# A process for each processor. A run's last digits depend on the number of TensorFlow's threads: the first tier has one in
# each process, which is fastest for small models, the second as many as TensorFlow takes by itself.
TESTS = $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: train test test-all gpu-check docs lint install clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $@

train: install
	$(BIN)/python scripts/train.py --dataset digits --batch-size 64 --epochs 60

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	TF_NUM_INTRAOP_THREADS=1 $(TESTS)

test-all: install
	$(TESTS) -m all

gpu-check: install
	$(BIN)/python scripts/gpu_check.py

docs: install
	$(BIN)/pdoc --docformat google --output-directory build/docs tf_isvae tf_isvae.plotting tf_isvae.posteriors tf_isvae.training

clean:
	rm -rf $(VENV) build *.egg-info
