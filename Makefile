# make book | test | notebooks | check | serve | clean: each sets up .venv by itself, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help book test notebooks check serve clean

help:
	@echo "make book       build the book into _build/html (warnings are errors)"
	@echo "make test       unit tests, the book's tests, and every chapter re-executed and compared"
	@echo "make notebooks  re-execute the chapters whose cells or code changed"
	@echo "make check      lint, formatting, types"
	@echo "make serve      build the book and serve it on http://127.0.0.1:8000"
	@echo "make clean      remove what was built (keeps .venv)"

# Installed again only when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("edmnotes needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

book: $(STAMP)
	$(BIN)/python tools/notebooks.py check
	$(BIN)/jupyter-book build . -W -n --keep-going --quiet
	@echo "The book: $(CURDIR)/_build/html/index.html"

test: $(STAMP)
	$(BIN)/python -m pytest tests -n 2 --dist loadfile
	$(BIN)/python -m pytest --nbval book -n 2 --dist loadfile

notebooks: $(STAMP)
	$(BIN)/python tools/notebooks.py run

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: book
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

clean:
	rm -rf _build
