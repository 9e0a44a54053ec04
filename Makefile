# make demo PROMPT="a big blue fish" | test | test-all | lab | readme | contact-sheet | clean
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The prompt goes to the shell as an environment variable, never as text of the recipe:
# quotes, backticks and dollar signs in it arrive as they were typed.
PROMPT ?= a small red star moves right over the ocean
override PROMPT := $(value PROMPT)
export PROMPT

export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
INPUTS := settings.ini setup.py constraints.txt

.PHONY: help demo test test-all lab readme contact-sheet clean
.DEFAULT_GOAL := help

help:
	@sed -n 1p Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sora_edu needs Python 3.10 or newer")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo "Installing sora_edu and its dependencies into $(VENV) (once, one to three minutes) ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/python
	@echo "Installing sora_edu and its development tools into $(VENV) (once, one to three minutes) ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	@$(BIN)/sora-edu generate -- "$$PROMPT"

test: $(VENV)/.installed-dev
	$(BIN)/python tools/chapters.py run --quiet
	@$(BIN)/python -m pytest -q -m "not slow" tests

test-all: $(VENV)/.installed-dev
	$(BIN)/python tools/chapters.py run --slow --quiet
	@$(BIN)/python -m pytest -q tests

lab: $(VENV)/.installed
	$(BIN)/jupyter lab nbs/index.ipynb

readme: $(VENV)/.installed-dev
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/model_card.py

contact-sheet: $(VENV)/.installed
	$(BIN)/python tools/contact_sheet.py

clean:
	rm -rf $(VENV) build dist *.egg-info _docs _proc .pytest_cache .hypothesis
	find nbs sora_edu tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
