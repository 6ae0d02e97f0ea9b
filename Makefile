# Everything runs in .venv, made on first use; constraints.txt pins versions known to work together.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
export PYTHONDONTWRITEBYTECODE :=  # or every process of the tests compiles what it imports

.PHONY: help demo test test-core lint check slow server gpu bench bench-full docs fuzz audit reliability coverage dist clean

help:
	@echo "make demo         train on icons, evaluate on unseen icons, index them (no data to download)"
	@echo "make test         the test suite without slow tests, in JOBS=2 processes"
	@echo "make test-core    tests of losses, models, data, training and evaluation"
	@echo "make lint         style, types and import layers"
	@echo "make check        lint and test"
	@echo "make slow         the slow tests"
	@echo "make server       tests against a Milvus server, which they install and start"
	@echo "make gpu          tests and benchmarks on a CUDA GPU, with the PyTorch that PYTHON has"
	@echo "make bench        speed and memory beside other libraries, 15 minutes; bench-full: the long ones"
	@echo "make fuzz         mutated files and requests, SECONDS=60 per parser"
	@echo "make audit        known vulnerabilities of the pinned versions; needs PyPI"
	@echo "make reliability  crash, disk and damage tests, slow ones included"
	@echo "make coverage     fail if a line or branch of losses or evaluation has no test"
	@echo "make dist         build wheel and sdist, install and use them in a clean environment"
	@echo "make docs         build the documentation, tables of the studies included, into site/"
	@echo "make clean        remove what make installed and built (runs stay)"

demo: .venv/installed-icons,search
	$(BIN)/orthoproxy train --config recipes/icons.yaml --out runs/icons --resume
	$(BIN)/orthoproxy index runs/icons/catalog icons --split test --model runs/icons
	@echo "to open the search page: $(BIN)/orthoproxy serve runs/icons/catalog"

test: .venv/installed-dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and not server" --doctest-modules src tests

test-core: .venv/installed-dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow" tests/losses tests/models tests/data tests/training tests/evaluation

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo --no-cache

check: lint test

slow: .venv/installed-dev
	$(BIN)/pytest -n $(JOBS) -m "slow and not server" --ignore tests/cli/test_demo.py tests
	$(BIN)/pytest -m slow tests/cli/test_demo.py  # alone, since it measures its time

server: .venv/installed-dev
	$(BIN)/pytest -m server tests

bench: .venv/installed-dev
	for name in objective million retrieval loading processes training; do $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python benchmarks/page.py

bench-full: bench demo
	$(BIN)/python benchmarks/retrieval.py --images 60502 --runs 1
	for name in precision export catalog cold serve; do $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python benchmarks/page.py

gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

SECONDS ?= 60
fuzz: .venv/installed-dev
	FUZZ_SECONDS=$(SECONDS) $(BIN)/pytest --timeout 0 tests/fuzz

audit:
	PYTHON=$(PYTHON) .ci/audit

reliability: .venv/installed-dev
	$(BIN)/pytest -m "not server" tests/core tests/faults tests/security tests/catalog

coverage: .venv/installed-dev
	$(BIN)/pytest -m "not slow" --cov=src/orthoproxy/losses --cov=src/orthoproxy/evaluation --cov-branch \
		--cov-report=term-missing --cov-fail-under=100 --doctest-modules \
		src/orthoproxy/losses src/orthoproxy/evaluation tests/losses tests/evaluation

dist:
	PYTHON=$(PYTHON) .ci/dist

docs: .venv/installed-docs
	$(BIN)/python docs/tables.py
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf .venv site build dist .cache

.venv/installed-%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
