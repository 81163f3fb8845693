# make train: the main job on the built-in dataset.   make test: the fast tests.
# Both first make .venv with the versions of requirements.lock; the second start finds it made.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock
WORKDIR ?= runs/quickstart

.PHONY: train test test-all faults lint types format docs bench notebooks badges lock clean
.DELETE_ON_ERROR:

train: .venv/base.installed
	$(BIN)/python main.py --mode=train_and_eval --config=configs/quickstart.py --workdir=$(WORKDIR)
	@echo
	@echo "Next, three commands to try:"
	@echo "  $(BIN)/python main.py --mode=eval --workdir=$(WORKDIR) --once --noema"
	@echo "      the same checkpoint by its raw parameters, not their EMA"
	@echo "  $(BIN)/python main.py --mode=train_and_eval --config=configs/quickstart.py --config.seed=1 --workdir=runs/seed1"
	@echo "      another seed: how much of the accuracy is chance"
	@echo "  $(BIN)/python main.py --config=configs/default.py --workdir=runs/tutorial"
	@echo "      the tutorial's run on the real CIFAR-10, downloaded at the first start"

test: .venv/dev.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/dev.installed
	$(BIN)/python -m pytest -m slow

faults: .venv/dev.installed
	$(BIN)/python -m tests.faults

lint: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.installed
	$(BIN)/mypy

format: .venv/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html"

bench: .venv/bench.installed
	$(BIN)/python -m benchmarks.compare

notebooks: .venv/dev.installed
	cd notebooks && ../$(BIN)/jupytext --quiet --to ipynb *.py
	cd notebooks && PYTHONPATH=.. ../$(BIN)/jupyter-execute --inplace *.ipynb

# "Open in Colab", once it is known where the repository is published; then `make notebooks`.
COLAB := https://colab.research.google.com
SCRIPTS ?= notebooks/*.py
REPOSITORY ?= $(shell git remote get-url origin 2> /dev/null \
  | sed -n 's|^.*github\.com[:/]\(.*\)$$|\1|p' | sed 's|\.git$$||')
badges:
	@test -n "$(REPOSITORY)" || { echo "Which one is it? make badges REPOSITORY=owner/name" >&2; exit 1; }
	@sed -i '/colab-badge/d' $(SCRIPTS)
	@for path in $(SCRIPTS); do \
	  target="$(COLAB)/github/$(REPOSITORY)/blob/main/notebooks/$$(basename $$path .py).ipynb"; \
	  sed -i "0,/^# # .*/s||&\n# [![Open in Colab]($(COLAB)/assets/colab-badge.svg)]($$target)|" $$path; \
	done

lock: .venv/dev.installed
	$(BIN)/python -m pip install --quiet uv
	( head -2 requirements.lock; $(BIN)/uv pip compile pyproject.toml --extra=dev --extra=tensorflow --extra=gpu --extra=k8s --universal \
	  --python-version=3.11 --no-header --no-annotate --upgrade --quiet ) > requirements.lock.part
	mv requirements.lock.part requirements.lock

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' \
	  || { echo "Python 3.11.4 or later is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

.venv/base.installed: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing cifar_jax and what it needs into .venv (about a minute)"
	@$(INSTALL) --editable '.[report]'
	@touch $@

.venv/dev.installed: pyproject.toml requirements.lock requirements-onnx.txt | .venv/bin/python
	@echo "Installing cifar_jax and what its tests need into .venv (about a minute)"
	@$(INSTALL) --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-onnx.txt
	@touch $@ .venv/base.installed

.venv/docs.installed: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing what the documentation is built with into .venv"
	@$(INSTALL) --editable '.[docs]'
	@touch $@ .venv/base.installed

.venv/bench.installed: pyproject.toml requirements.lock | .venv/bin/python
	@echo "Installing PyTorch and TensorFlow beside cifar_jax into .venv (several minutes)"
	@$(INSTALL) --editable '.[bench]'
	@touch $@ .venv/base.installed

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
