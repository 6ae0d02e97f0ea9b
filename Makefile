# Everything runs in .venv, made on first use; constraints.txt pins versions known to work together.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lint check slow server bench bench-full docs clean

help:
	@echo "make demo   train on icons, judge on unseen icons, make a catalog of these (no data to download)"
	@echo "make test   the test suite, without the slow tests"
	@echo "make lint   style and types"
	@echo "make check  lint and test"
	@echo "make slow   the slow tests"
	@echo "make server tests of a Milvus server, which they install and start"
	@echo "make bench  speed and memory beside the peers, a quarter of an hour; make bench-full: what takes longer"
	@echo "make clean  remove what make installed and built (runs stay)"
	@echo "make docs   build the documentation into site/"

demo: .venv/installed-icons,search
	$(BIN)/orthoproxy train --config recipes/icons.yaml --out runs/icons --resume
	$(BIN)/orthoproxy index runs/icons/catalog --data.name icons --split test --model runs/icons
	@echo "search in them on a page: $(BIN)/orthoproxy serve runs/icons/catalog"

test: .venv/installed-dev
	$(BIN)/pytest -m "not slow and not server" --doctest-modules src tests

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

check: lint test

slow: .venv/installed-dev
	$(BIN)/pytest -m "slow and not server" tests

server: .venv/installed-dev
	$(BIN)/pytest -m server tests

bench: .venv/installed-dev
	for name in objective million retrieval loading processes training; do $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python benchmarks/page.py

bench-full: bench
	$(BIN)/python benchmarks/retrieval.py --images 60502 --runs 1
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/page.py

docs: .venv/installed-docs
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf .venv site build dist .cache

.venv/installed-%: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
