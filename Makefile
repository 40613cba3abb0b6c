# make demo: install, train the quickstart on two ranks, evaluate, generate.   make test: install what tests need, run all.
PYTHON ?= python3
VENV ?= .venv
RUN := runs/quickstart
BIN := $(VENV)/bin
# One thread a rank: two ranks fill two cores.
export OMP_NUM_THREADS ?= 1

.PHONY: install install-test demo test lint clean

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-test.txt
	touch $@

demo: install
	$(BIN)/torchrun --nproc-per-node 2 --no-python $(BIN)/altup-moe train configs/quickstart.yaml --log.run_dir $(RUN)
	$(BIN)/altup-moe evaluate $(RUN)
	$(BIN)/altup-moe generate $(RUN) --prompt "The for statement is used to" --max-new-tokens 80
	@echo
	@echo "The run lies in $(RUN): config.yaml, metrics.jsonl, tensorboard/, checkpoints/"

# Distributed tests start up to four ranks each, so two workers fill two cores.
test: install-test
	$(BIN)/python -m pytest -n 2

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info
