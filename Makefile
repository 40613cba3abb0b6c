# make quick      the tests for every edit: 3 minutes on two cores
# make test       everything that a laptop should run: about 16 minutes on two quiet cores; CI runs it
# make test-all   also the long matrices, and all of it again on Python 3.12 with the other megatron-core, if it is there
# make lint       formatter, linter, types
# make wheel      the package that pip installs, into dist/
# make docs       the site from docs/ into site/; a broken link or a missing page is an error
# make demo       install, train the quickstart on two ranks, evaluate, generate
PYTHON ?= python3
VENV ?= .venv
RUN := runs/quickstart
BIN := $(VENV)/bin
# One thread a rank: two ranks fill two cores.
export OMP_NUM_THREADS ?= 1
# Tests start some two hundred interpreters: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON312 ?= python3.12
# Ranks of distributed tests fill both cores by themselves; two workers keep them filled.
# A file's tests stay on one worker: what they share (reference gradients, runs to compare with) is made once.
# In the order of the folders: the long files come first, so that both workers end together.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install install-test install-docs demo quick test test-all test-312 lint docs wheel clean

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test
install-docs: $(VENV)/.installed-docs

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-test.txt
	touch $@

$(VENV)/.installed-docs: requirements-docs.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-docs.txt
	touch $@

demo: install
	$(BIN)/altup-moe launch torchrun --ranks-per-node 2 -- $(BIN)/altup-moe train quickstart --log.run_dir $(RUN)
	$(BIN)/altup-moe evaluate $(RUN)
	$(BIN)/altup-moe generate $(RUN) --prompt "The for statement is used to" --max-new-tokens 80
	@echo
	@echo "The run lies in $(RUN): config.yaml, metrics.jsonl, tensorboard/, checkpoints/"

quick: install-test
	$(PYTEST) -m "quick or not (distributed or slow or long)"

test: install-test
	$(PYTEST) -m "not long" --durations 10

test-all: install-test
	$(PYTEST) --durations 10
	@if $(PYTHON312) -c "" 2> /dev/null; then $(MAKE) test-312; else echo "no $(PYTHON312): megatron-core 0.19.2 was not tested"; fi

test-312:
	$(MAKE) install-test PYTHON=$(PYTHON312) VENV=$(VENV)-312
	$(VENV)-312/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: install-test
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

docs: install-docs
	$(BIN)/python -m docs.generate --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-312 runs build dist site *.egg-info
