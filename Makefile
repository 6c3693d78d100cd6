# `make demo` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
VENV_LAB ?= .venv-lab
OUT ?= out
PIP_FLAGS := --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check crash fuzz results clean

help:
	@echo "make demo    install the torch-free core into $(VENV), render all seven labels into $(OUT)/"
	@echo "make test    install the lab, serve and dev extras into $(VENV_LAB), run the whole suite"
	@echo "make check   ruff and pyright, as a change should pass them"
	@echo "make crash   stop commands at each of their file operations, and see that nothing is lost (about 10 minutes)"
	@echo "make fuzz    a million mutated inputs for every parser (FUZZ=\"--hours 8 --workers 4\": for a night)"
	@echo "make results write the pages of results/ that are made from committed records"
	@echo "make clean   remove both environments and $(OUT)/"

demo: $(VENV)/installed
	$(VENV)/bin/foleybox generate all --count 4 --seed 1 -o $(OUT) --sheet $(OUT)/sheet.png --force

test: $(VENV_LAB)/installed
	OMP_NUM_THREADS=1 $(VENV_LAB)/bin/python -m pytest -n 2 --dist worksteal

check: $(VENV_LAB)/installed
	$(VENV_LAB)/bin/ruff format --check .
	$(VENV_LAB)/bin/ruff check .
	$(VENV_LAB)/bin/pyright --pythonpath $(VENV_LAB)/bin/python

crash: $(VENV_LAB)/installed
	$(VENV_LAB)/bin/python tests/crash.py

fuzz: $(VENV_LAB)/installed
	OMP_NUM_THREADS=1 $(VENV_LAB)/bin/python tests/fuzz/fuzz.py $(FUZZ)

results: $(VENV_LAB)/installed
	$(VENV_LAB)/bin/foleybox report results/systems -o results/systems.md
	$(VENV_LAB)/bin/python benchmarks/learning_curve.py
	$(VENV_LAB)/bin/python benchmarks/speed.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "foleybox needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-compile -e . # bytecode of all that is never imported: 40 MB
	touch $@

$(VENV_LAB)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_LAB)
	$(VENV_LAB)/bin/python -m pip install $(PIP_FLAGS) -e '.[lab,serve,dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_LAB) $(OUT)
