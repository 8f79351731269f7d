# Needs Python 3.10 to 3.12, make and a package index; everything else is set up here.
PYTHON ?= python3
VENV ?= .venv
DIR ?= quickstart
BIN := $(VENV)/bin

# nothing here needs a network once the packages are installed
export AXOLOTL_DO_NOT_TRACK = 1
export HF_HUB_OFFLINE = 1

.PHONY: install quickstart test test-slow test-all lint
.NOTPARALLEL: # the tests have two processes already

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[test]'
	touch $@

# on a busy machine threads that wait for each other by spinning take several times as long
quickstart: export OMP_WAIT_POLICY = PASSIVE
# `--launcher python`: in this process, without accelerate's, which would first import all of it, too
quickstart: install
	$(BIN)/axolotl aot-quickstart $(DIR)
	$(BIN)/axolotl train $(DIR)/aot.yml --launcher python
	$(BIN)/axolotl train $(DIR)/aot_unpaired.yml --launcher python
	$(BIN)/axolotl aot-quickstart $(DIR) --rates

# what a contributor runs at every change: about 10 minutes on two cores
PYTEST := $(BIN)/python -m pytest -q
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) $(TWO_PROCESSES) -m "not slow"

# what `make test` leaves out; what measures time comes last, alone on the machine
test-slow: install
	$(PYTEST) $(TWO_PROCESSES) -m "slow and not timing"
	$(PYTEST) -m timing

test-all: test test-slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
