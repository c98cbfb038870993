"""Guided sharpening against truth at 10 m: simulated EnMAP with Sentinel-2 over the same ground.

Run: python benchmarks/sharpen.py [--edge 96] [--json FILE]

The ground of two simulated scenes is sampled at 10 m with EnMAP's bands: the truth. Degraded by a Gaussian with a
modulation transfer of 0.3 at Nyquist, and with the noise of the simulated detectors, it is the scene at 30 m.
Sentinel-2 is a product of the simulator: bands with noise, 16 bit, opened as users do. No clouds, no stripes, no
displacement. PSNR is the mean over good bands, range 1; SAM in degrees; ERGAS of ratio 3; nine fine pixels at the edge
do not count. `to 30 m` is the SAM between scene and product, degraded again.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import cubeloom
from cubeloom.pipeline import metrics
from cubeloom.pipeline.degrade import NYQUIST, degrade
from cubeloom.pipeline.regrid import refined
from cubeloom.pipeline.scene import Bands, SceneSpec, cube_variable, scene_from, spec_of
from cubeloom.pipeline.simulate.bands import operational
from cubeloom.pipeline.simulate.observation import Cube, build_cubes, build_ground
from cubeloom.pipeline.simulate.options import ground_options, settle_site
from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2
from cubeloom.pipeline.stages.sharpen_consistency import consistent
from cubeloom.pipeline.stages.sharpen_guide import Detail, Seen
from cubeloom.pipeline.stages.superres import refine

SCENES = (("temperate", 103), ("coastal", 104))
FACTOR, MARGIN = 3, 9
WATER_VAPOUR = ((1350, 1460), (1800, 1960))
GUIDES = {"10 m": {"grid": "10m"}, "10 and 20 m": {"grid": "10m", "bands": "common"}}


def simulated(landscape: str, seed: int, edge: int) -> tuple[xr.Dataset, np.ndarray]:
    """A scene at 30 m and its truth at 10 m, `(band, y, x)`."""
    options = ground_options(seed, edge, edge, landscape, bands=operational())
    site = settle_site(options)
    ground = build_ground(options, site)
    [cube] = build_cubes(options, site, ground)
    truth = np.stack([_row(cube, row, edge * FACTOR) for row in range(edge * FACTOR)], axis=1)
    wavelength = options.bands.wavelength
    good = ~np.any([(wavelength >= low) & (wavelength <= high) for low, high in WATER_VAPOUR], axis=0)
    order = np.argsort(wavelength, kind="stable")
    every = np.ones(len(order), bool)
    number = np.arange(1, len(order) + 1)
    bands = Bands(
        number, wavelength[order], options.bands.fwhm[order], options.bands.detector[order], good[order], every
    )
    spec = SceneSpec(
        scene_id=f"{landscape}-{seed}",
        sensor="EnMAP",
        processing_level="L2A",
        time=site.start,
        source="simulated",
        bands=bands,
        grid=_grid(cube, edge),
        variables={"reflectance": cube_variable("reflectance")},
        measurement="reflectance",
        subject="reflectance",
    )
    measured = _noisy(cube, degrade(truth, FACTOR, NYQUIST), seed)
    return scene_from(spec, {"reflectance": measured[order]}), truth[order]


def _row(cube: Cube, row: int, width: int) -> np.ndarray:
    x = ((np.arange(width) + 0.5) / FACTOR).astype(np.float32)
    y = np.full(width, (row + 0.5) / FACTOR, np.float32)
    return cube.ground.surface.reflectance(y, x, cube.spectra, 1 / FACTOR).T


def _grid(cube: Cube, edge: int) -> Any:  # noqa: ANN401 - odc-geo is untyped
    from odc.geo.geobox import GeoBox

    swath = cube.ground.swath
    return GeoBox((edge, edge), swath.transform, f"EPSG:{swath.epsg}")


def _noisy(cube: Cube, clean: np.ndarray, seed: int) -> np.ndarray:
    """The clean cube as the simulated detectors measure it, corrected for the atmosphere again."""
    pixels = clean.reshape(len(clean), -1).T
    light, columns = cube.transfer, np.arange(len(pixels)) % cube.ground.swath.columns
    radiance = (pixels * light.slope + light.path).astype(np.float32)
    measured, _ = cube.sensor.measure(radiance, columns, np.random.default_rng(seed))
    return (((measured - light.path) / light.slope).T.reshape(clean.shape)).astype(np.float32)


def products(scene: xr.Dataset, safe: Path) -> Iterator[tuple[str, xr.Dataset]]:
    """Every method's product: two of the scene alone, then those with a guide."""
    known = np.isfinite(scene["reflectance"].values).all(axis=0)
    cube = scene["reflectance"].values
    cubic = refine(cube, known, FACTOR)
    yield "bicubic", _as_product(scene, cubic)
    alone = Seen(
        cube, known, np.zeros((1, *cubic.shape[1:]), np.float32), np.zeros((1, *known.shape), np.float32), FACTOR
    )
    none = Detail(np.zeros((0, *cubic.shape[1:]), np.float32), np.zeros((len(cube), 0)))
    yield "bicubic, back-projected", _as_product(scene, consistent(alone, none, np.ones(1), NYQUIST, 3))
    for name, opened in GUIDES.items():
        guide = cubeloom.open_scene(safe, **opened)
        for method in ("gsa", "cnmf", "hysure"):
            yield f"{method}, {name}", cubeloom.sharpen(scene, guide, method=method)
    denoised = cubeloom.denoise(scene, method="subspace").load()
    yield "gsa, 10 m, of the denoised scene", cubeloom.sharpen(denoised, cubeloom.open_scene(safe))


def _as_product(scene: xr.Dataset, fine: np.ndarray) -> xr.Dataset:
    spec = spec_of(scene)
    return scene_from(replace(spec, grid=refined(spec.grid, FACTOR)), {"reflectance": fine})


def judged(product: xr.Dataset, scene: xr.Dataset, truth: np.ndarray) -> dict[str, float]:
    """All numbers of one product."""
    good = scene["good"].values
    made = product[product.attrs["subject"]].values[good]
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    reference, estimate = truth[good][inner], made[inner]
    again = degrade(made, FACTOR, NYQUIST)
    return {
        "MPSNR": metrics.psnr(reference, estimate, 1.0),
        "SAM": metrics.sam(reference, estimate),
        "ERGAS": metrics.ergas(reference, estimate, FACTOR),
        "to 30 m": metrics.sam(scene["reflectance"].values[good], again),
    }


def main() -> None:
    """Print a table a scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=96, help="of the scenes, px of 30 m")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for landscape, seed in SCENES:
        scene, truth = simulated(landscape, seed, arguments.edge)
        with tempfile.TemporaryDirectory() as folder:
            shape = {"height": arguments.edge, "width": arguments.edge}
            safe = simulate_sentinel2(Path(folder), seed=seed, landscape=landscape, clouds=0.0, **shape).path
            print(f"\n{landscape}, seed {seed}, {arguments.edge} x {arguments.edge} px of 30 m\n")
            print("| method | MPSNR dB | SAM deg | ERGAS | to 30 m, deg |\n|---|---|---|---|---|", flush=True)
            for name, product in products(scene, safe):
                found = rows.setdefault(f"{landscape}-{seed}", {})[name] = judged(product, scene, truth)
                print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
