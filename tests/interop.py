"""Does a product open in the newest GDAL, rioxarray and odc-geo? Run by `make interop`.

rasterio's wheels for Python 3.11 bundle a GDAL that opens no Zarr 3. So a product is written here, and read in an
environment of a newer Python, built once in `.interop` from the package index. Where there is no newer Python, nothing
is checked, and the last line says so.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".interop"
PACKAGES = ("dask>=2025.1", "odc-geo>=0.5", "rasterio>=1.5", "rioxarray>=0.22", "xarray>=2025.1", "zarr>=3.1")
NEWEST_FIRST = ("3.13", "3.12", "3.14")
WINDOW = (20, 40, 160, 180)
"""First row and column, height and width, px, of the pixels compared: over chunk borders and the edge of the swath."""


def main() -> None:
    """Write a product here, read it there."""
    python = reader_python()
    if python is None:
        print("interop: SKIPPED, no Python >= 3.12 on this machine (newer GDAL has no wheels for older ones)")
        return
    with tempfile.TemporaryDirectory(prefix="cubeloom-interop-") as scratch:
        store = write_product(Path(scratch))
        facts = Path(scratch) / "facts.json"
        facts.write_text(json.dumps({group: describe(store, group) for group in ("", "overviews/2", "x2")}))
        subprocess.run([python, __file__, "--read", store, facts], check=True)


def reader_python() -> Path | None:
    """The interpreter of the reading environment, which is made where it is missing."""
    python = VENV / "bin" / "python"
    ready = VENV / ".installed"
    if ready.is_file() and ready.read_text() == "\n".join(PACKAGES):
        return python
    newer = next((found for version in NEWEST_FIRST for found in interpreters(version) if runs(found, version)), None)
    if newer is None:
        return None
    print(f"interop: making {VENV.name} with {newer}", flush=True)
    subprocess.run([newer, "-m", "venv", "--clear", VENV], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
    ready.write_text("\n".join(PACKAGES))
    return python


def interpreters(version: str) -> list[Path]:
    """Where a Python may lie: on the path, or among pyenv's."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    return [
        *([Path(on_path)] if on_path else []),
        *sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True),
    ]


def runs(python: Path, version: str) -> bool:
    """Whether it is that Python (a pyenv shim may stand for none) and can make environments."""
    probe = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def write_product(folder: Path) -> Path:
    """A simulated product of 12 bands, masked and refined: large enough for overviews of both grids."""
    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.readers import open_source
    from cubeloom.pipeline.simulate import simulate_scene
    from cubeloom.pipeline.stages import Mask, Superres

    made = simulate_scene(folder, height=600, width=560, n_vnir=6, n_swir=6, seed=3)
    run_to_store(open_source(made.path), [Mask(), Superres(scale=2)], folder / "product.zarr")
    return folder / "product.zarr"


def describe(store: Path, group: str) -> dict[str, object]:
    """What Cubeloom itself reads from a group: grid, bands, and packed numbers of a window."""
    from cubeloom.pipeline.grids import Window
    from cubeloom.pipeline.readers import open_source
    from cubeloom.pipeline.readers.base import values

    source = open_source(store, group=group)
    spec = source.spec
    window = Window(*(size // 2 if group.startswith("overviews") else size for size in WINDOW))
    variables = {}
    for name, variable in spec.variables.items():
        read = source.read(name, window)
        variables[name] = {
            "scale": variable.encoding.scale,
            "fill": variable.encoding.fill,
            "numbers": (values(read) if variable.encoding.scale is None else read.data).tolist(),
        }
    return {
        "epsg": spec.grid.crs.to_epsg(),
        "transform": list(spec.grid.affine)[:6],
        "shape": spec.shape,
        "wavelength": spec.bands.wavelength.tolist(),
        "window": [window.row, window.col, window.height, window.width],
        "variables": variables,
    }


def read_back(store: str, facts: dict[str, dict]) -> None:
    """The checks, run by the newer Python."""
    import odc.geo
    import rasterio
    import rioxarray
    import xarray

    for group, expected in facts.items():
        check_gdal(store, group, expected)
        for decode_coords in ("all", True):
            check_xarray(store, group, expected, decode_coords)
    check_subdatasets(store, facts)
    print(
        f"interop: GDAL {rasterio.__gdal_version__} (rasterio {rasterio.__version__}), "
        f"rioxarray {rioxarray.__version__} and odc-geo {odc.geo.__version__} (xarray {xarray.__version__}) "
        f"read {len(facts)} groups: CRS, transform, nodata, scale, wavelengths and pixels"
    )


def check_gdal(store: str, group: str, expected: dict) -> None:
    """Every raster of a group, and its wavelengths, through GDAL alone."""
    import numpy as np
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.windows import Window

    row, col, height, width = expected["window"]
    for name, variable in expected["variables"].items():
        href = f'ZARR:"{store}":/{"/".join(filter(None, (group, name)))}'
        numbers = np.array(variable["numbers"])
        with rasterio.open(href) as raster:
            place = (raster.crs.to_epsg(), list(raster.transform)[:6], raster.shape)
            assert place == (expected["epsg"], expected["transform"], tuple(expected["shape"])), f"{href}: {place}"
            assert raster.count == (len(numbers) if numbers.ndim == 3 else 1), f"{href}: {raster.count} bands"
            if variable["fill"] is not None:
                assert set(raster.nodatavals) == {variable["fill"]}, f"{href}: nodata {raster.nodatavals}"
            if variable["scale"] is not None:
                assert set(raster.scales) == {variable["scale"]}, f"{href}: scales {set(raster.scales)}"
            read = raster.read(window=Window(col, row, width, height))
        assert (read == numbers).all(), f"{href}: other pixels"
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a band axis lies nowhere
    with rasterio.open(f'ZARR:"{store}":/{"/".join(filter(None, (group, "wavelength")))}') as raster:
        assert raster.units == ("nm",), raster.units
        np.testing.assert_array_equal(raster.read(1).ravel(), expected["wavelength"])


def check_subdatasets(store: str, facts: dict[str, dict]) -> None:
    """Whoever opens the store itself is shown every raster in it."""
    import rasterio

    with rasterio.open(store) as whole:
        listed = {href.rpartition(":/")[2] for href in whole.subdatasets}
    rasters = {"/".join(filter(None, (group, name))) for group, one in facts.items() for name in one["variables"]}
    assert rasters <= listed, f"GDAL does not list {sorted(rasters - listed)}"


def check_xarray(store: str, group: str, expected: dict, decode_coords: str | bool) -> None:
    """The same through `xarray.open_zarr`, rioxarray and odc-geo, with the arguments that people use."""
    import numpy as np
    import odc.geo.xr  # noqa: F401 - registers the accessor
    import rioxarray  # noqa: F401 - registers the accessor
    import xarray as xr

    scene = xr.open_zarr(store, group=group or None, decode_coords=decode_coords)
    row, col, height, width = expected["window"]
    np.testing.assert_array_equal(scene["wavelength"], expected["wavelength"])
    for name, variable in expected["variables"].items():
        array, where = scene[name], f"{store}, {group or '/'} {name}, decode_coords={decode_coords}"
        place = (array.rio.crs.to_epsg(), list(array.rio.transform())[:6], array.rio.shape)
        assert place == (expected["epsg"], expected["transform"], tuple(expected["shape"])), f"{where}: {place}"
        box = array.odc.geobox
        assert (box.crs.epsg, list(box.affine)[:6]) == place[:2], f"{where}: {box}"
        numbers = np.array(variable["numbers"])
        values = array[..., row : row + height, col : col + width].values
        if variable["scale"] is None:
            assert (values == numbers).all(), f"{where}: other pixels"
            continue
        assert array.rio.encoded_nodata == variable["fill"], f"{where}: nodata {array.rio.encoded_nodata}"
        missing = numbers == variable["fill"]
        assert 0 < missing.mean() < 1, f"{where}: the window should hold some pixels without a value"
        assert (np.isnan(values) == missing).all(), f"{where}: nodata at other pixels"
        known = numbers[~missing] * variable["scale"]
        np.testing.assert_allclose(values[~missing], known, rtol=0, atol=variable["scale"] / 100, err_msg=where)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_back(sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))
    else:
        main()
