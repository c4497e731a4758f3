# make help lists the targets. Each one sets up .venv when it is missing or older than
# pyproject.toml or constraints.txt.

PYTHON ?= python3
# Books for `make tiny`: a path, or empty for PG-19 from the Hugging Face Hub.
BOOKS ?= $(wildcard ../shared/data)

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

# A test uses one thread (tests/conftest.py), so files run side by side on up to four cores.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint tiny tables tables-capacity clean

help:
	@echo "make demo       compress a text with the embedded checkpoint and answer from its memory"
	@echo "make test       the fast tests (offline)"
	@echo "make test-slow  the slow tests (offline)"
	@echo "make lint       ruff check, ruff format --check, mypy, typos"
	@echo "make tiny       train the embedded checkpoint again (BOOKS=path, or PG-19 from the Hub)"
	@echo "make tables     train and measure the small world, write docs/results.md (hours; resumes)"
	@echo "make tables-capacity  how much a vector holds, written to docs/capacity.md (half an hour; resumes)"
	@echo "make clean      remove builds and caches (not .venv, not runs/)"
	@echo "PYTHON=python3.12 chooses the interpreter for .venv (3.11 to 3.13)."

demo: $(VENV)/.core
	$(BIN)/memslots demo

test: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest -q -m "not slow" $(PARALLEL)

test-slow: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	$(BIN)/typos

tiny: $(VENV)/.dev
	$(BIN)/memslots train tiny $(if $(BOOKS),--books "$(BOOKS)") --output runs/tiny \
		--install src/memslots/assets/tiny
	$(BIN)/memslots eval src/memslots/assets/tiny --suite tiny --card --readme README.md

tables: $(VENV)/.dev
	$(BIN)/memslots tables $(if $(BOOKS),--books "$(BOOKS)") --output runs/tables --report docs/results.md

tables-capacity: $(VENV)/.dev
	$(BIN)/memslots capacity $(if $(BOOKS),--books "$(BOOKS)") --output runs/capacity \
		--report docs/capacity.md

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: .core is the package with what it needs at run time, .dev adds training, evaluation
# and the development tools.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	@touch $(VENV)/.core $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "memslots needs Python 3.11 to 3.13, and '$(PYTHON)' is not one: try make PYTHON=python3.12" >&2; \
		exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 2; }
