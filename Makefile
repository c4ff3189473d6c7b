# make book       set up .venv, run every chapter live, build the site from what just ran
# make test       prove all of it; .ci/run calls this
# make notebooks  stamp, run and normalise the committed chapters in place
# make results    write the tables of recorded results

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install book test notebooks results clean

FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.installed

help:
	@sed -n 's/^# make/make/p' Makefile

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(FITS)' 2>/dev/null; then \
		echo "No Python from 3.11 to 3.13 found ($(or $(PYTHON),nothing) does not fit)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi
	@$(BIN)/python -c '$(FITS)' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing the exact versions of constraints.txt into .venv (minutes, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		--constraint constraints.txt --editable '.[book,test]'
	@touch $(READY)

install: $(READY)

book: $(READY)
	@$(BIN)/python book/live.py

test: $(READY)
	@$(BIN)/python tests/prove.py

notebooks: $(READY)
	@$(BIN)/python book/notebooks.py stamp
	@OMP_NUM_THREADS=1 $(BIN)/python book/notebooks.py run

results: $(READY)
	@$(BIN)/python book/notebooks.py results

clean: # runs/ stays: it holds recorded runs
	rm -rf _build
