# Everything below works on a machine with Python 3.11, git and make alone.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= out

.PHONY: demo test soak lint typecheck format bench interop clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,train,s3,icechunk,prefect]"
	touch $(STAMP)

demo: $(STAMP) ## take four simulated scenes from delivery to published product, denoised and classified by networks, and compare the denoisers
	$(BIN)/cubeloom simulate $(OUT)/demo/training --size 192x192 --seed 100
	$(BIN)/cubeloom simulate $(OUT)/demo/deliveries --count 4 --size 320x320 --seed 1 --container zip
	$(BIN)/cubeloom scan $(OUT)/demo/deliveries --out $(OUT)/demo/catalog
	$(BIN)/cubeloom run enmap_l2a --catalog $(OUT)/demo/catalog --out $(OUT)/demo/products \
		--set classify.model=spectral_segmenter.landcover
	$(BIN)/cubeloom validate $(OUT)/demo/products
	$(BIN)/cubeloom evaluate denoise "$$(ls -d $(OUT)/demo/training/*-TRUTH | head -n 1)/CLEAN.TIF#scale=0.0001" \
		--methods noisy,subspace+outliers,network:hsdt_s.enmap+outliers --noises enmap,mixture --out $(OUT)/demo/denoisers
	@echo
	@echo "Products (Zarr):  $(OUT)/demo/products/scenes/*/*.zarr"
	@echo "Their pictures:   $(OUT)/demo/products/scenes/*/*.quicklooks/"
	@echo "STAC catalog:     $(OUT)/demo/products/catalog.json"
	@echo "Both denoisers:   $(OUT)/demo/denoisers/figure.png"
	@echo "Report:           $$(ls -d $(OUT)/demo/products/runs/*/report.html | tail -n 1)"

test: $(STAMP) ## two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

soak: $(STAMP) ## four hundred scenes under random kills, then a minute of fuzzing for each parser of foreign input
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python tests/soak.py
	$(BIN)/python tests/fuzz/run.py --seconds 60

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
