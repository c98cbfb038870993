# Everything below works on a machine with Python 3.11, git and make alone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out

.PHONY: demo test lint typecheck format bench interop clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(STAMP)

demo: $(STAMP) ## simulate a catalog, run the main workflow, say where the products are
	$(BIN)/cubeloom demo --out $(OUT)/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: $(STAMP) ## type checkers do not follow the editable install's map: give them a tree of links
	rm -rf .links && mkdir -p .links/cubeloom
	for entry in cubeloom/*.py cubeloom/py.typed pipeline models catalogs workflows; do \
		ln -s "$(CURDIR)/$$entry" .links/cubeloom/; done
	cd .links && ../$(BIN)/mypy --config-file ../pyproject.toml -p cubeloom

bench: $(STAMP) ## every benchmark beside its peer; QUICK=1 for the short cases
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script $(if $(QUICK),--quick) || exit 1; done

interop: $(STAMP) ## a published product opens with the newest GDAL
	$(BIN)/python tests/interop.py

clean:
	rm -rf .links build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
