# Everything runs in .venv, made on first use; constraints.txt pins versions known to work together.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.PHONY: help demo test lint check slow server bench bench-full docs fuzz audit reliability coverage dist clean

help:
	@echo "make demo   train on icons, evaluate on unseen icons, index these (no data to download)"
	@echo "make test   the test suite, without the slow tests, in JOBS=2 processes"
	@echo "make lint   style and types"
	@echo "make check  lint and test"
	@echo "make slow   the slow tests"
	@echo "make server tests of a Milvus server, which they install and start"
	@echo "make bench  speed and memory beside the peers, a quarter of an hour; make bench-full: what takes longer"
	@echo "make fuzz   changed files and requests at all that reads them, SECONDS=60 of each"
	@echo "make audit  known weaknesses of the versions in constraints.txt; needs PyPI"
	@echo "make reliability  the tests that kill, fill and damage things, slow ones too"
	@echo "make coverage  losses and evaluation: a line or branch without a test is an error"
	@echo "make dist   wheel and sdist, installed and used in a clean environment"
	@echo "make clean  remove what make installed and built (runs stay)"
	@echo "make docs   build the documentation into site/"

demo: .venv/installed-icons,search
	$(BIN)/orthoproxy train --config recipes/icons.yaml --out runs/icons --resume
	$(BIN)/orthoproxy index runs/icons/catalog icons --split test --model runs/icons
	@echo "search in them on a page: $(BIN)/orthoproxy serve runs/icons/catalog"

test: .venv/installed-dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and not server" --doctest-modules src tests

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

bench-full: bench
	$(BIN)/python benchmarks/retrieval.py --images 60502 --runs 1
	for name in precision export catalog serve; do $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python benchmarks/page.py

SECONDS ?= 60
fuzz: .venv/installed-dev
	FUZZ_SECONDS=$(SECONDS) $(BIN)/pytest --timeout 0 tests/fuzz

audit:
	PYTHON=$(PYTHON) .ci/audit

reliability: .venv/installed-dev
	$(BIN)/pytest -m "not server" tests/core tests/faults tests/security

coverage: .venv/installed-dev
	$(BIN)/pytest -m "not slow" --cov=src/orthoproxy/losses --cov=src/orthoproxy/evaluation --cov-branch \
		--cov-report=term-missing --cov-fail-under=100 --doctest-modules \
		src/orthoproxy/losses src/orthoproxy/evaluation tests/losses tests/evaluation

dist:
	PYTHON=$(PYTHON) .ci/dist

docs: .venv/installed-docs
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf .venv site build dist .cache

.venv/installed-%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
