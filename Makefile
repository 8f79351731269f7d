# Needs Python 3.10 to 3.13, make and a package index; everything else is set up here.
PYTHON ?= python3
VENV ?= .venv
DIR ?= quickstart
BIN := $(VENV)/bin

# nothing here needs a network once the packages are installed
export AXOLOTL_DO_NOT_TRACK = 1
export HF_HUB_OFFLINE = 1

.PHONY: install quickstart test lint

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[test]'
	touch $@

quickstart: install
	$(BIN)/axolotl aot-quickstart $(DIR)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/axolotl train $(DIR)/aot.yml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/axolotl train $(DIR)/aot_unpaired.yml
	$(BIN)/axolotl aot-quickstart $(DIR) --rates

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
