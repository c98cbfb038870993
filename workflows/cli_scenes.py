"""Commands on single scenes and stores."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from .cli_options import (
    CORES,
    Detector,
    Guide,
    GuideOpen,
    Json,
    Memory,
    Open,
    Overwrite,
    Workers,
    reader_options,
)

app = typer.Typer()


def _single(
    source: str,
    out: Path,
    steps: tuple[Any, ...],
    options: dict[str, str],
    overwrite: bool,
    workers: int,
    memory: str,
    guide: str | None = None,
    guide_options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.guided import with_guides
    from cubeloom.pipeline.readers import open_source
    from cubeloom.pipeline.stages import Pair

    from .console import parse_bytes, say
    from .schema import Workflow

    stages = Workflow(name="single", steps=steps).stages()
    budget = parse_bytes(memory)
    scene = open_source(source, **options)
    if guide:
        pairs = [stage for stage in stages if isinstance(stage, Pair)]
        opened = open_source(guide, **guide_options)
        scene = with_guides(scene, {pair.guide: pair.regridded(opened, scene.spec) for pair in pairs})
    run_to_store(scene, stages, out, overwrite=overwrite, workers=workers, memory=budget)
    say(f"{source} -> {out}")


def _beside(guide: str | None) -> tuple[Any, ...]:
    """The step that brings a guide onto a scene's grid, where there is one: what a model sees beside the scene."""
    pair = {"guide": "radar", "steps": ["mask"], "refine": 1, "resampling": "bilinear", "coregister": "off"}
    return ({"pair": {**pair, "publish": False}},) if guide else ()


@app.command()
def ingest(
    product: Annotated[str, typer.Argument(help="A product, a store, or the URL of a store.")],
    out: Path,
    opened: Open = None,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Write PRODUCT to the Zarr store OUT, as it was measured."""
    _single(product, out, (), reader_options(opened, detector), overwrite, workers, memory)


@app.command()
def denoise(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    out: Path,
    method: Annotated[str | None, typer.Option(help="network, or subspace, which needs no trained one.")] = None,
    model: Annotated[str | None, typer.Option(help="Another network, see `cubeloom models list`.")] = None,
    weights: Annotated[str | None, typer.Option(help="A file, or hf:owner/repo/file@sha256.")] = None,
    strength: Annotated[float, typer.Option(help="1: what is most likely noise.")] = 1.0,
    outliers: Annotated[bool, typer.Option("--outliers", help="Tell struck values and stripes from noise.")] = False,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Also how sure the network is.")] = False,
    opened: Open = None,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Mask, destripe and denoise IN; OUT holds `denoised` beside the measurement."""
    chosen = {"model": model, "weights": weights, "outliers": outliers, **({"method": method} if method else {})}
    step = {"denoise": {**chosen, "strength": strength, "uncertainty": uncertainty}}
    _single(source, out, ("mask", "destripe", step), reader_options(opened, detector), overwrite, workers, memory)


@app.command()
def superres(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    out: Path,
    scale: Annotated[int | None, typer.Option(help="How many times finer: 2, or as a network does.")] = None,
    model: Annotated[str | None, typer.Option(help="A network, see `cubeloom models list`; else cubic.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of a family: a file, or hf:owner/repo/file@sha256.")] = None,
    opened: Open = None,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Refine the grid of IN; OUT holds the finer grid in its own group (`x2`)."""
    step = {"superres": {"model": model, "weights": weights, **({"scale": scale} if scale else {})}}
    _single(source, out, ("mask", step), reader_options(opened, detector), overwrite, workers, memory)


@app.command()
def sharpen(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    guide: Annotated[str, typer.Argument(metavar="GUIDE", help="A finer scene over the same ground.")],
    out: Path,
    method: Annotated[str, typer.Option(help="gsa, cnmf or hysure.")] = "gsa",
    refine: Annotated[int | None, typer.Option(help="How many times finer; by default as the guide is.")] = None,
    coregister: Annotated[str, typer.Option(help="off, report or correct: the guide's displacement.")] = "correct",
    resampling: Annotated[
        str | None, typer.Option(help="Of the guide: restored undoes the blur of Sentinel-2's bands of 10 m.")
    ] = None,
    opened: Open = None,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Mask IN and bring its spectra to the resolution of GUIDE; OUT holds the finer grid in its own group (`x3`)."""
    pair = {"guide": "guide", "refine": refine, "coregister": coregister, "resampling": resampling, "publish": False}
    steps = ("mask", {"pair": pair}, {"sharpen": {"method": method}})
    _single(source, out, steps, reader_options(opened, detector), overwrite, workers, memory, guide)


@app.command()
def classify(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    out: Path,
    model: Annotated[
        str, typer.Option(help="A classifier that `cubeloom train` made, or a network that labels pixels.")
    ],
    weights: Annotated[str | None, typer.Option(help="Of a family: a file, or hf:owner/repo/file@sha256.")] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a network's tiles, px; 0: the whole image.", min=0)] = None,
    guide: Guide = None,
    guide_opened: GuideOpen = None,
    opened: Open = None,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Classify IN; OUT holds classes, probabilities, confidence and entropy beside the measurement.

    A model that sees a second scene too, of a radar or another date, takes it from --guide.
    """
    steps = ("mask", *_beside(guide), {"classify": {"model": model, "weights": weights, "tile": tile}})
    options, of_guide = reader_options(opened, detector), reader_options(guide_opened)
    _single(source, out, steps, options, overwrite, workers, memory, guide, of_guide)


@app.command()
def embed(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    out: Path,
    model: Annotated[str, typer.Option(help="A backbone, see `cubeloom models list`.")],
    weights: Annotated[str | None, typer.Option(help="Of a family: a file, or hf:owner/repo/file@sha256.")] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of the network's tiles, px; 0: the whole image.", min=0)
    ] = None,
    guide: Guide = None,
    guide_opened: GuideOpen = None,
    parquet: Annotated[Path | None, typer.Option(help="Also a GeoParquet file, a row for every 128 x 128 px.")] = None,
    opened: Open = None,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Embed IN by a backbone; OUT holds a vector for every few pixels in a group of its own, such as `d4`.

    A network that sees a radar scene too takes it from --guide.
    """
    from cubeloom.pipeline.embeddings import require_free, write_embeddings

    from .console import say

    if parquet:
        require_free(parquet)
    steps = ("mask", *_beside(guide), {"embed": {"model": model, "weights": weights, "tile": tile}})
    options, of_guide = reader_options(opened, detector), reader_options(guide_opened)
    _single(source, out, steps, options, overwrite, workers, memory, guide, of_guide)
    if parquet:
        say(f"{out} -> {write_embeddings(out, parquet)}")


@app.command()
def export(
    store: Annotated[str, typer.Argument(help="A store, or the URL of one.")],
    out: Path,
    to: Annotated[str, typer.Option(help="cog or envi.")] = "cog",
    variable: Annotated[str | None, typer.Option(help="Which variable; by default the latest cube.")] = None,
) -> None:
    """Write a variable of a store as a cloud-optimised GeoTIFF or an ENVI file, for tools that read no Zarr."""
    from cubeloom.pipeline.export import export_store

    from .console import say

    export_store(store, out, to=to, variable=variable)
    say(f"{store} -> {out}")


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A product, a store, or the URL of a store.")],
    opened: Open = None,
    as_json: Json = False,
) -> None:
    """Show what a product or a store holds, without reading pixels."""
    from .console import print_json
    from .inspect import describe_path, print_description

    description = describe_path(path, reader_options(opened))
    if as_json:
        print_json(description)
    else:
        print_description(description)


@app.command()
def validate(
    path: Annotated[str, typer.Argument(help="A store or the URL of one, or an output directory or catalog.")],
) -> None:
    """Hash every chunk of a store against its record and check the Scene; or check a catalog and all its products."""
    from .console import say
    from .inspect import validate_path

    for line in validate_path(path):
        say(line)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder for the products and their truth.")],
    count: Annotated[int, typer.Option(help="How many different places.", min=1)] = 1,
    sensors: Annotated[str, typer.Option(help="enmap, sentinel2, sentinel1: those that see each place.")] = "enmap",
    dates: Annotated[int, typer.Option(help="How often Sentinel-2 sees each place, 50 days apart.", min=1)] = 1,
    level: Annotated[str, typer.Option(help="Of EnMAP: L1B, L1C or L2A.")] = "L2A",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the EnMAP raster, px of 30 m.")] = "256x256",
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
    container: Annotated[str, typer.Option(help="folder, zip, or tar.gz (EnMAP's; of Sentinel zip).")] = "folder",
    layout: Annotated[str, typer.Option(help="Of EnMAP's rasters: tiled or strips.")] = "tiled",
    s2_epsg: Annotated[
        str | None, typer.Option(help="UTM zone of Sentinel-2's tiles, such as 32632; next: the neighbouring one.")
    ] = None,
    shift: Annotated[str, typer.Option(help="EAST,NORTH in m by which Sentinel images are displaced.")] = "0,0",
) -> None:
    """Write products that nobody measured, laid out as DLR and ESA deliver them, with the truth beside them."""
    from cubeloom.pipeline.simulate.places import simulate_places

    from .console import parse_shift, parse_size, parse_zone, say
    from .train.truth import write_change_recipe, write_sentinel_recipe, write_truth_recipe

    height, width = parse_size(size)
    products = simulate_places(
        out,
        count,
        sensors=[part.strip() for part in sensors.split(",") if part.strip()],
        level=level,
        height=height,
        width=width,
        seed=seed,
        container=container,
        layout=layout,
        epsg=parse_zone(s2_epsg),
        shift=parse_shift(shift),
        dates=dates,
    )
    for product in (product for made in products.values() for product in made):
        say(f"{product.path}")
    if "enmap" in products and level != "L1B":  # its two cubes are not registered, so no one map labels both
        recipe = write_truth_recipe(products["enmap"], out / "train.yaml")
        say(f"recipe that learns from their truth: {recipe}")
    if {"sentinel2", "sentinel1"} <= products.keys():
        recipe = write_sentinel_recipe(products["sentinel2"], products["sentinel1"], out / "train_s1s2.yaml")
        say(f"recipe that learns from both Sentinels and their truth: {recipe}")
    if dates > 1:
        recipe = write_change_recipe(products["sentinel2"], dates, out / "train_change.yaml")
        say(f"recipe that learns from their truth what changed: {recipe}")
