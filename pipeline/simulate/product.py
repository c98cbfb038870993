"""Writing a simulated product: rasters, masks, quicklooks, METADATA.XML, and the truth beside them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import cover
from .bands import BandTable
from .geometry import rational_polynomials
from .metadata import SWIR_QUICKLOOK, VNIR_QUICKLOOK, BandFacts, CubeFacts, Facts, render
from .observation import Cube, Ground, build_cubes, build_ground
from .options import Options, Site
from .rasters import Grid, Statistics, composite, profile, statistics, write_bands, write_class_map, write_thumbnail
from .staging import BandFile, Packing, Staged, compute, packing
from .styles import STYLES

AnyArray = npt.NDArray[np.generic]
MaskArray = npt.NDArray[np.uint8]

LAND, WATER, BACKGROUND = 1, 2, 3
"""Codes of QL_QUALITY_CLASSES."""

_COVERS = {"cloudCover": "CLOUD", "cloudShadow": "CLOUDSHADOW", "hazeCover": "HAZE", "cirrusCover": "CIRRUS",
           "snowCover": "SNOW"}  # fmt: skip


def write_product(
    folder: Path, truth: Path, name: str, options: Options, site: Site, *, block_rows: int, workers: int
) -> None:
    """Write a product's files into `folder` and the truth into `truth`, both of which must exist and be empty."""
    ground = build_ground(options, site)
    cubes = build_cubes(options, site, ground)
    writer = _Writer(folder, truth, name, options, site, ground)
    measured = [writer.cube(cube, block_rows, workers) for cube in cubes]
    covers = writer.masks(cubes[0])
    for cube in cubes:
        writer.flags(cube)
    writer.parameters(cubes)
    writer.metadata(cubes, measured, covers)


class _Writer:
    """The files of one product; every method writes some of them."""

    def __init__(self, folder: Path, truth: Path, name: str, options: Options, site: Site, ground: Ground) -> None:
        self.folder, self.truth, self.name = folder, truth, name
        self.options, self.site, self.ground = options, site, ground
        self.parts = ground.surface.classes()

    def path(self, part: str) -> Path:
        """Path of a file of the product."""
        return self.folder / f"{self.name}-{part}"

    def grid(self, cube: Cube) -> Grid:
        """Grid of a cube's rasters."""
        if cube.sensor_geometry:
            return Grid(cube.shape, None, None)
        swath = self.ground.swath
        return Grid(cube.shape, f"EPSG:{swath.epsg}", swath.transform)

    def cube(self, cube: Cube, block_rows: int, workers: int) -> tuple[Packing, list[Statistics]]:
        """Spectral image, pixel mask, clean cube and quicklooks; returns the packing and statistics of its bands."""
        pack, grid = packing(cube, self.options.version), self.grid(cube)
        shape, layout = (len(cube.table), *cube.shape), self.options.layout
        with _staged(self.truth, shape, pack.dtype) as staged:
            compute(cube, pack, staged, block_rows=block_rows, workers=workers)
            seen: list[Statistics] = []
            nodata = {"nodata": pack.nodata} if cube.reflectance else {}
            predicted = {**profile(grid, pack.dtype, shape[0], layout), "predictor": 2}
            image = self.path(f"SPECTRAL_IMAGE{cube.suffix}.TIF")
            write_bands(image, _measured(staged.measured, pack, seen), predicted | nodata)
            clean = self.truth / f"CLEAN{cube.suffix}.TIF"
            write_bands(clean, staged.clean.bands(), predicted | {"nodata": pack.nodata}, _band_tags(cube.table, pack))
            mask = self.path(f"QL_PIXELMASK{cube.suffix}.TIF")
            write_bands(mask, staged.defects.bands(), profile(grid, "uint8", shape[0], layout))
            self._quicklooks(cube, staged.measured, pack.nodata)
        return pack, seen

    def _quicklooks(self, cube: Cube, file: BandFile, nodata: int) -> None:
        for detector, colours in (("vnir", VNIR_QUICKLOOK), ("swir", SWIR_QUICKLOOK)):
            if not cube.table.of(detector).size:
                continue
            planes = [file.band(cube.table.nearest(wavelength)) for wavelength in colours]
            rgba = composite(planes, nodata)
            self._write(f"QL_{detector.upper()}.TIF", rgba, cube)
            if detector == "vnir":
                write_thumbnail(self.path("THUMBNAIL.jpg"), rgba)

    def _write(self, part: str, planes: AnyArray, cube: Cube, **options: Any) -> None:  # noqa: ANN401 - GDAL options
        planes = planes[None] if planes.ndim == 2 else planes
        layout = profile(self.grid(cube), planes.dtype.name, planes.shape[0], self.options.layout)
        write_bands(self.path(part), planes, layout | options)

    def masks(self, cube: Cube) -> dict[str, float]:
        """Classes, clouds, snow and the truth's class map on the grid of a cube; returns percentages of the swath."""
        water, snow = self.parts == cover.WATER, self.parts == cover.SNOW
        layers = self.ground.weather.masks() | {"SNOW": snow.astype(np.uint8)}
        classes = cube.map(np.where(water, WATER, LAND).astype(np.uint8), BACKGROUND)
        self._write("QL_QUALITY_CLASSES.TIF", classes, cube, nodata=BACKGROUND)
        swath = int((classes != BACKGROUND).sum())
        mapped = {name: cube.map(layer, 0) for name, layer in layers.items()}
        for name, layer in mapped.items():
            self._write(f"QL_QUALITY_{name}.TIF", layer, cube)
        truth = cube.map(self.parts, 0)
        layout = profile(self.grid(cube), "uint8", 1, self.options.layout)
        write_class_map(self.truth, truth, layout)
        percent: dict[str, float] = {
            field: 100 * np.count_nonzero(mapped[name]) / swath for field, name in _COVERS.items()
        }
        return percent | {"waterCover": 100 * np.count_nonzero(classes == WATER) / swath}

    def flags(self, cube: Cube) -> None:
        """The test flags of a cube's detectors."""
        self._write(f"QL_QUALITY_TESTFLAGS{cube.suffix}.TIF", cube.flags(), cube)

    def parameters(self, cubes: list[Cube]) -> None:
        """What the scene was made with: PARAMETERS.json and the stripes of every element, STRIPES.npz."""
        options, sky = self.options, self.site.sky
        unit = "reflectance" if cubes[0].reflectance else "W m-2 sr-1 nm-1"
        noise: dict[str, Any] = {}
        for cube in cubes:
            scale = cube.transfer.slope if cube.reflectance else 1.0
            bright = np.sqrt(cube.sensor.read + cube.sensor.shot * (0.3 * cube.transfer.slope + cube.transfer.path))
            for key, values in (("dark", np.sqrt(cube.sensor.read)), ("reflectance_0.3", bright)):
                noise.setdefault(key, {})[cube.suffix.strip("_") or "all"] = (values / scale).tolist()
        settings = (
            "level",
            "seed",
            "height",
            "width",
            "version",
            "clouds",
            "noise",
            "stripes",
            "dead_pixels",
            "landscape",
        )
        parameters = {
            "product": self.name,
            **{name: getattr(options, name) for name in settings},
            "place": self.site.place,
            "sun_zenith": sky.sun_zenith,
            "sun_azimuth": sky.sun_azimuth,
            "water_vapour": sky.water_vapour,
            "aerosol": sky.aerosol,
            "soils": STYLES[options.landscape].soils,
            "noise_unit": unit,
            "noise_std": noise,
        }
        _write_json(self.truth / "PARAMETERS.json", parameters)
        stripes = {}
        for cube in cubes:
            for key in ("gain", "offset", "dead", "stuck"):
                stripes[f"{key}{cube.suffix}"] = getattr(cube.sensor, key)
        np.savez_compressed(self.truth / "STRIPES.npz", **stripes)

    def metadata(
        self, cubes: list[Cube], measured: list[tuple[Packing, list[Statistics]]], covers: dict[str, float]
    ) -> None:
        """METADATA.XML, last, because it lists the sizes of all other files."""
        images = [self.path(f"SPECTRAL_IMAGE{cube.suffix}.TIF") for cube in cubes]
        kinds = ["merge"] if self.options.level != "L1B" else [cube.suffix.strip("_").lower() for cube in cubes]
        files = sorted((file.name, file.stat().st_size) for file in self.folder.iterdir())
        facts = Facts(
            name=self.name,
            options=self.options,
            site=self.site,
            swath=self.ground.swath,
            bands=self._band_facts(cubes, measured),
            cubes=[
                CubeFacts(kind, image.name, cube.shape, len(cube.table), -(-image.stat().st_size // 1024))
                for kind, image, cube in zip(kinds, images, cubes, strict=True)
            ],
            covers=covers,
            dead={
                detector: sum(int(cube.sensor.dead[:, cube.table.of(detector)].sum()) for cube in cubes)
                for detector in ("vnir", "swir")
            },
            files=[(f"{self.name}-METADATA.XML", 0), *files],
        )
        self.path("METADATA.XML").write_text(render(facts), encoding="utf-8")

    def _band_facts(self, cubes: list[Cube], measured: list[tuple[Packing, list[Statistics]]]) -> list[BandFacts]:
        facts: list[BandFacts] = []
        for cube, (pack, seen) in zip(cubes, measured, strict=True):
            rpc = rational_polynomials(self.ground.swath, cube.shift, self.site.ground_height)
            for band, counts in enumerate(seen):
                gain, offset = float(pack.gain[band]), float(pack.offset[band])
                facts.append(
                    BandFacts(
                        number=len(facts) + 1,
                        wavelength=float(cube.table.wavelength[band]),
                        fwhm=float(cube.table.fwhm[band]),
                        gain=gain,
                        offset=offset,
                        mean=counts.mean * gain + offset if counts.count else None,
                        std=counts.std * gain,
                        rpc=rpc,
                    )
                )
        return facts


@contextmanager
def _staged(folder: Path, shape: tuple[int, int, int], dtype: str) -> Iterator[Staged]:
    """Files for a cube between its pixels and its GeoTIFFs, deleted afterwards."""
    with ExitStack() as stack:
        kinds = {"measured": dtype, "clean": dtype, "defects": "uint8"}
        files = {name: stack.enter_context(BandFile(folder / f".{name}", shape, kind)) for name, kind in kinds.items()}
        yield Staged(**files)


def _measured(file: BandFile, pack: Packing, seen: list[Statistics]) -> Iterator[AnyArray]:
    """The bands of a file in turn; their statistics are put into `seen` on the way."""
    for plane in file.bands():
        seen.append(statistics(plane, pack.nodata))
        yield plane


def _band_tags(table: BandTable, pack: Packing) -> Iterator[dict[str, str]]:
    """What the truth tells of each band, for it has no XML."""
    for band in range(len(table)):
        yield {
            "wavelength": f"{table.wavelength[band]:.3f}",
            "wavelength_units": "nanometers",
            "fwhm": f"{table.fwhm[band]:.4f}",
            "detector": str(table.detector[band]),
            "gain": repr(float(pack.gain[band])),
            "offset": repr(float(pack.offset[band])),
        }


def _write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - JSON values
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
