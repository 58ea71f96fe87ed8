# Every target sets up .venv by itself, once; again only when the requirements change.
#   make book PYTHON=/path/to/python3.12     another Python than the first of the list below
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help book test notebooks results check serve clean
.DELETE_ON_ERROR:

help:
	@echo "make book       build the book into _build/html (warnings are errors)"
	@echo "make test       unit tests, the book's tests, and every chapter re-executed and compared"
	@echo "make notebooks  re-execute the chapters whose cells or code changed"
	@echo "make results    see whether code that changed still gives the stored results (seconds each)"
	@echo "make check      lint, formatting, types"
	@echo "make serve      build the book and serve it on http://127.0.0.1:8000"
	@echo "make clean      remove what was built (keeps .venv)"

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "edmnotes needs Python 3.11 or newer; '$(or $(PYTHON),python3)' is" \
			"$$($(or $(PYTHON),python3) --version 2>&1 || echo missing)." \
			"Install one, or name it: make ... PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing edmnotes and what it needs into $(VENV) (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

book: $(STAMP)
	@$(BIN)/python tools/notebooks.py check
	@$(BIN)/python tools/book.py

# Cheap first: unit tests and the book's structure, then the rendered book, then every chapter again. The reports go
# to _build, where .ci/run reads which tests ran.
test: $(STAMP)
	$(PYTEST) tests --junitxml=_build/tests.xml
	$(PYTEST) --nbval book --junitxml=_build/nbval.xml

notebooks: $(STAMP)
	$(BIN)/python tools/notebooks.py run

results: $(STAMP)
	$(BIN)/python tools/results.py confirm

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: book
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

clean:
	rm -rf _build
