"""The command line. Every command imports what it needs when it runs, so that `--help` is quick."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cubeloom.errors import CubeloomError
from cubeloom.secrets import redact

app = typer.Typer(
    name="cubeloom",
    help="Imaging-spectrometer scenes from a catalog to analysis-ready Zarr.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Workers = Annotated[int, typer.Option(help="Block tasks at a time.", min=1)]
Memory = Annotated[str, typer.Option(help="Memory the run may use, such as 8GB; a plan above it is refused.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new store is complete.")]
Scenes = Annotated[int, typer.Option(help="Scenes at once, as memory allows; 0: as many as workers, to 4.", min=0)]
Scheduler = Annotated[str | None, typer.Option(help="Dask cluster: tcp://HOST:PORT, a scheduler file, or processes.")]
Retries = Annotated[int, typer.Option(help="How often a failure that may pass is tried again.", min=0)]
Keep = Annotated[int | None, typer.Option(help="Versions of each product that stay; all by default.", min=1)]
PublishTo = Annotated[str | None, typer.Option(help="Also push products to s3://BUCKET/PREFIX or icechunk+s3://…")]
KeepLocal = Annotated[bool, typer.Option(help="Keep what was pushed under OUT as well.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Detector = Annotated[str | None, typer.Option(help="vnir or swir, for EnMAP L1B.")]
CORES = os.cpu_count() or 1


@app.command()
def run(
    workflow: Annotated[str, typer.Argument(help="A workflow of the library by name, or a YAML file.")],
    catalog: Annotated[Path, typer.Option(help="STAC catalog, collection, item collection or item.")],
    out: Annotated[Path, typer.Option(help="Directory for products, items and reports.")],
    items: Annotated[list[str] | None, typer.Option(help="Ids or patterns of items to take; may be repeated.")] = None,
    bbox: Annotated[str | None, typer.Option(help="west,south,east,north in degrees.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take no more than this many items.", min=1)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="STEP.PARAMETER=VALUE; may be repeated.")] = None,
    workers: Workers = CORES,
    memory: Memory = "4GB",
    scenes: Scenes = 0,
    scheduler: Scheduler = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve Dask's dashboard for --scheduler processes.")
    ] = False,
    retries: Retries = 2,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another run on the same OUT.", min=0)] = 0.0,
    keep: Keep = None,
    publish_to: PublishTo = None,
    keep_local: KeepLocal = True,
    again: Annotated[bool, typer.Option("--again", help="Also try scenes that have killed three processes.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with what an earlier run left unfinished.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run WORKFLOW over a catalog; finished products are left alone, an interrupted run goes on."""
    from cubeloom.catalogs.items import parse_bbox, read_catalog, select_items

    from .console import counted, parse_bytes, print_json, say, watched
    from .run import RunOptions
    from .run import run as run_workflow
    from .schema import load_workflow
    from .summary import report_run

    chain = load_workflow(workflow, settings or ())
    options = RunOptions(
        workers=workers,
        memory=parse_bytes(memory),
        scenes=scenes,
        scheduler=scheduler,
        dashboard=dashboard,
        retries=retries,
        wait_s=wait,
        keep=keep,
        publish_to=publish_to,
        keep_local=keep_local,
        give_up=not again,
        resume=resume,
    )
    known = read_catalog(catalog)
    chosen = select_items(known, ids=items or (), bbox=parse_bbox(bbox) if bbox else None, limit=limit)
    if not chosen:
        say(f"none of the {counted(len(known), 'item')} of {catalog} matches")
    if dry_run:
        _show_plan(chain, chosen, out, options, as_json)
        return
    with stoppable() as stop, watched() as progress:
        result = run_workflow(chain, chosen, out, options, progress, stop)
    report = report_run(result)
    states = [scene.state for scene in result.scenes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no scenes"
    say(f"{counts} in {result.seconds:.1f} s\nproducts: {out / 'catalog.json'}\nreport:   {report}")
    if as_json:
        from cubeloom.untrusted import load_json

        print_json(load_json(report.with_name("summary.json")))
    raise typer.Exit(result.exit_code)


def _show_plan(chain: Any, chosen: Any, out: Path, options: Any, as_json: bool) -> None:  # noqa: ANN401
    from dataclasses import asdict

    from .console import counted, print_json, print_table
    from .run import dry_run

    planned = dry_run(chain, chosen, out, options)
    if as_json:
        print_json([asdict(scene) for scene in planned])
    else:
        rows = [(s.item, s.action, s.blocks, f"{s.projected_mib:.0f}", s.identity[:8], s.detail) for s in planned]
        columns = ("item", "action", "blocks", "memory MiB", "identity", "plan")
        print_table(f"{chain.name}: {counted(len(planned), 'scene')}, nothing written", columns, rows)
    raise typer.Exit(3 if any(scene.action == "fail" for scene in planned) else 0)


@app.command()
def scan(
    directory: Annotated[Path, typer.Argument(help="Folder of deliveries; searched to any depth.")],
    out: Annotated[Path, typer.Option(help="Folder for the catalog.")],
    as_json: Json = False,
) -> None:
    """Make a static STAC catalog of the products below DIRECTORY."""
    from .console import counted, print_json, say
    from .scan import scan as scan_directory

    result = scan_directory(directory, out)
    for _, cause in result.rejected:
        say(f"left out: {cause}")
    say(f"{counted(len(result.items), 'scene')} -> {result.catalog}")
    if as_json:
        print_json({"catalog": result.catalog, "items": result.items, "rejected": dict(result.rejected)})
    raise typer.Exit(3 if result.rejected else 0)


@app.command()
def search(
    provider: Annotated[str, typer.Argument(help="A provider by name, or the URL of a STAC API.")],
    out: Annotated[Path, typer.Option(help="Folder for the catalog.")],
    collection: Annotated[list[str] | None, typer.Option(help="Collection to search; may be repeated.")] = None,
    bbox: Annotated[str | None, typer.Option(help="west,south,east,north in degrees.")] = None,
    datetime: Annotated[str | None, typer.Option(help="Acquired then, such as 2024-06 or 2024-06-01/..")] = None,
    updated_since: Annotated[str | None, typer.Option(help="Changed in the catalog then or later; UTC.")] = None,
    max_cloud: Annotated[float | None, typer.Option(help="Percent.", min=0, max=100)] = None,
    item: Annotated[list[str] | None, typer.Option(help="Id of an item; may be repeated.")] = None,
    cql: Annotated[str | None, typer.Option("--filter", help="More conditions in CQL2, text or JSON.")] = None,
    limit: Annotated[int | None, typer.Option(help="Find no more than this many items.", min=1)] = None,
    download: Annotated[Path | None, typer.Option(help="Folder to fetch the products to.")] = None,
    as_json: Json = False,
) -> None:
    """Make a static STAC catalog of what PROVIDER finds: dlr-enmap, earth-search, planetary-computer or cdse."""
    from .console import print_json, say
    from .search import parse_query, search_command

    query = parse_query(
        collections=collection, bbox=bbox, datetime=datetime, updated_since=updated_since,
        max_cloud=max_cloud, ids=item, limit=limit, cql=cql,
    )  # fmt: skip
    result = search_command(provider, query, out, download, tell=say)
    say("\n".join(result.lines()))
    if as_json:
        print_json(result.summary())
    raise typer.Exit(result.exit_code)


@app.command()
def nightly(
    workflow: Annotated[str, typer.Argument(help="A workflow of the library by name, or a YAML file.")],
    search: Annotated[str, typer.Option(help="A provider by name, or the URL of a STAC API; as `cubeloom search`.")],
    out: Annotated[Path, typer.Option(help="Directory for products, items and reports.")],
    collection: Annotated[list[str] | None, typer.Option(help="Collection to search; may be repeated.")] = None,
    bbox: Annotated[str | None, typer.Option(help="west,south,east,north in degrees.")] = None,
    datetime: Annotated[str | None, typer.Option(help="When it was acquired, such as 2024-06-01/..")] = None,
    max_cloud: Annotated[float | None, typer.Option(help="Percent.", min=0, max=100)] = None,
    cql: Annotated[str | None, typer.Option("--filter", help="Further conditions in CQL2, text or JSON.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Where the first night begins (UTC); a week ago by default.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Hours that each search looks behind the last.", min=0)] = 48,
    nights: Annotated[int, typer.Option(help="How often a scene that fails is tried.", min=1)] = 7,
    settings: Annotated[list[str] | None, typer.Option("--set", help="STEP.PARAMETER=VALUE; may be repeated.")] = None,
    workers: Workers = CORES,
    memory: Memory = "4GB",
    scenes: Scenes = 0,
    scheduler: Scheduler = None,
    retries: Retries = 2,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another run on the same OUT.", min=0)] = 0.0,
    keep: Keep = None,
    publish_to: PublishTo = None,
    keep_local: KeepLocal = True,
    webhook: Annotated[str, typer.Option(help="Gets a POST when a night fails; better $CUBELOOM_WEBHOOK.")] = "",
    mail: Annotated[
        list[str] | None, typer.Option(help="Who is told; may be repeated. Needs $CUBELOOM_SMTP_HOST.")
    ] = None,
    notify_always: Annotated[bool, typer.Option("--notify-always", help="Also tell of good nights.")] = False,
    at: Annotated[str, typer.Option(help="When a night begins (UTC), for the three options below.")] = "02:30",
    print_systemd: Annotated[bool, typer.Option("--print-systemd", help="Print a unit and its timer.")] = False,
    print_cron: Annotated[bool, typer.Option("--print-cron", help="Print lines for a crontab.")] = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Stay, and work every night on Prefect's schedule.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run WORKFLOW over what a catalog has new or changed since the last night that went well."""
    from .console import parse_bytes, print_json, say, watched
    from .nightly_job import NightlyJob, start

    options = {
        "workers": workers,
        "memory": parse_bytes(memory),
        "scenes": scenes,
        "scheduler": scheduler,
        "retries": retries,
        "wait_s": wait,
        "keep": keep,
        "publish_to": publish_to,
        "keep_local": keep_local,
    }
    job = NightlyJob(
        workflow=workflow,
        settings=tuple(settings or ()),
        search=search,
        out=out,
        collections=tuple(collection or ()),
        bbox=bbox,
        datetime=datetime,
        max_cloud=max_cloud,
        cql=cql,
        since=since,
        overlap_hours=overlap,
        nights=nights,
        mail=tuple(mail or ()),
        always=notify_always,
        options=options,
    )
    if start(job, at, systemd=print_systemd, cron=print_cron, prefect=prefect):
        return
    with stoppable() as stop, watched() as progress:
        ended = job.run(progress, stop, webhook)
    for line in ended.lines():
        say(line)
    if as_json:
        print_json(ended.summary)
    raise typer.Exit(ended.night.exit_code)


def _single(
    source: str, out: Path, steps: tuple[Any, ...], detector: str | None, overwrite: bool, workers: int, memory: str
) -> None:
    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.readers import open_source

    from .console import parse_bytes, say
    from .schema import Workflow

    stages = Workflow(name="single", steps=steps).stages()
    options = {"detector": detector} if detector else {}
    budget = parse_bytes(memory)
    run_to_store(open_source(source, **options), stages, out, overwrite=overwrite, workers=workers, memory=budget)
    say(f"{source} -> {out}")


@app.command()
def ingest(
    product: Annotated[str, typer.Argument(help="A product, a store, or the URL of a store.")],
    out: Path,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Write PRODUCT to the Zarr store OUT, as it was measured."""
    _single(product, out, (), detector, overwrite, workers, memory)


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
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Mask, destripe and denoise IN; OUT holds `denoised` beside the measurement."""
    chosen = {"model": model, "weights": weights, "outliers": outliers, **({"method": method} if method else {})}
    step = {"denoise": {**chosen, "strength": strength, "uncertainty": uncertainty}}
    _single(source, out, ("mask", "destripe", step), detector, overwrite, workers, memory)


@app.command()
def superres(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    out: Path,
    scale: Annotated[int, typer.Option(help="How many times finer.", min=2, max=4)] = 2,
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Refine the grid of IN; OUT holds the finer grid in its own group (`x2`)."""
    _single(source, out, ("mask", {"superres": {"scale": scale}}), detector, overwrite, workers, memory)


@app.command()
def classify(
    source: Annotated[str, typer.Argument(metavar="IN", help="A product, a store, or the URL of a store.")],
    out: Path,
    model: Annotated[Path, typer.Option(help="A classifier that `cubeloom train` made.")],
    detector: Detector = None,
    overwrite: Overwrite = False,
    workers: Workers = CORES,
    memory: Memory = "4GB",
) -> None:
    """Classify IN; OUT holds classes, probabilities and confidence beside the measurement."""
    _single(source, out, ("mask", {"classify": {"model": str(model)}}), detector, overwrite, workers, memory)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; paths in it are relative to it.")],
    out: Annotated[Path, typer.Option(help="File for the model.")],
    as_json: Json = False,
) -> None:
    """Train what RECIPE describes: a classifier from labelled scenes, or a network that denoises from clean cubes.

    The training of a network goes on where an earlier call for the same OUT stopped.
    """
    from .console import print_json, say
    from .train import train as train_recipe

    report = train_recipe(recipe, out, say)
    if as_json:
        print_json(report.summary())
    else:
        say(str(report))
    raise typer.Exit(report.exit_code)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder for the products and their truth.")],
    count: Annotated[int, typer.Option(help="How many different scenes.", min=1)] = 1,
    level: Annotated[str, typer.Option(help="L1B, L1C or L2A.")] = "L2A",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the raster, px.")] = "256x256",
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
    container: Annotated[str, typer.Option(help="folder, zip or tar.gz.")] = "folder",
    layout: Annotated[str, typer.Option(help="tiled or strips.")] = "tiled",
) -> None:
    """Write EnMAP products that nobody measured, laid out as DLR delivers them, with the truth beside them."""
    from cubeloom.pipeline.simulate import simulate_catalog

    from .console import parse_size, say
    from .train.truth import write_truth_recipe

    height, width = parse_size(size)
    products = simulate_catalog(
        out, count, level=level, height=height, width=width, seed=seed, container=container, layout=layout
    )
    for product in products:
        say(f"{product.path}")
    if level != "L1B":  # its two cubes are not registered, so no one map labels both
        say(f"recipe that learns from their truth: {write_truth_recipe(products, out / 'train.yaml')}")


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A product, a store, or the URL of a store.")], as_json: Json = False
) -> None:
    """Show what a product or a store holds, without reading pixels."""
    from .console import print_json
    from .inspect import describe_path, print_description

    description = describe_path(path)
    if as_json:
        print_json(description)
    else:
        print_description(description)


@app.command()
def status(
    out: Annotated[Path, typer.Argument(help="An output directory.")],
    state: Annotated[list[str] | None, typer.Option(help="Only scenes in this state; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Show what became of every scene, and what is under way; also while a run works."""
    from .console import print_json, print_table
    from .status import read_status

    found = read_status(out, tuple(state or ()))
    if as_json:
        print_json(found.to_json())
        return
    counts = ", ".join(f"{number} {name}" for name, number in found.counts().items()) or "no scenes"
    columns = ("item", "workflow", "state", "tries", "blocks", "since (UTC)", "cause or product")
    print_table(
        f"{out}: {counts}; {'a run is at work' if found.running else 'no run is at work'}", columns, found.table()
    )


@app.command()
def validate(path: Annotated[Path, typer.Argument(help="A store, or an output directory or catalog.")]) -> None:
    """Hash every chunk of a store against its record and check the Scene; or check a catalog and all its products."""
    from .console import say
    from .inspect import validate_path

    for line in validate_path(path):
        say(line)


@app.command()
def export(
    store: Path,
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
def report(
    out: Annotated[Path, typer.Argument(help="An output directory.")],
    run_id: Annotated[str | None, typer.Option("--run", help="Which run; by default the last.")] = None,
) -> None:
    """Make the report of a finished run anew from its summary and its products."""
    from .console import say
    from .summary import report_again

    say(f"{report_again(out, run_id)}")


models = typer.Typer(help="The networks that stages can use.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models")


@models.command("list")
def models_list(as_json: Json = False) -> None:
    """List the families of networks and the weights that are shipped for them."""
    from .console import print_json
    from .model_list import describe_models, print_models

    if as_json:
        print_json(describe_models())
    else:
        print_models()


@models.command("info")
def models_info(
    model: Annotated[str, typer.Argument(help="A name of the list, weights with a card, or a saved classifier.")],
    weights: Annotated[str | None, typer.Option(help="Weights of the family MODEL: file or hf: source.")] = None,
    as_json: Json = False,
) -> None:
    """Show the card of a model: settings, digest, licence, training and metrics."""
    from .console import print_json
    from .model_list import describe_model, print_model

    description = describe_model(model, weights)
    if as_json:
        print_json(description)
    else:
        print_model(description)


evaluate = typer.Typer(help="Compare methods on cubes of your own.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate, name="evaluate")


@evaluate.command("denoise")
def evaluate_denoise(
    cubes: Annotated[list[str], typer.Argument(metavar="CUBE...", help="Products, stores, GeoTIFF or MATLAB files.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and figure.png.")],
    methods: Annotated[
        str, typer.Option(help="Some of noisy, subspace, hymixde, network:NAME[@WEIGHTS].")
    ] = "noisy,subspace,hymixde",
    noises: Annotated[str, typer.Option(help="Kinds of noise; protocol stands for nine of them.")] = "protocol",
    seed: Annotated[int, typer.Option(help="The same seed gives the same noise.", min=0)] = 0,
    crop: Annotated[int, typer.Option(help="Longest side of the middle that is taken of a cube, px.", min=16)] = 512,
    as_json: Json = False,
) -> None:
    """Add noise to clean CUBEs, denoise them by every method and measure what comes out."""
    from .console import print_json, say
    from .evaluate import evaluate_files

    found, written = evaluate_files(cubes, out, methods=methods, noises=noises, seed=seed, crop=crop, tell=say)
    say("\n".join(str(path) for path in written))
    if as_json:
        print_json(found.to_json())
    raise typer.Exit(3 if any(score.error for score in found.scores) else 0)


def main() -> None:
    """Entry point: our own errors become one message and an exit code."""
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # sensor geometry has none by design
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        app(prog_name="cubeloom")
    except CubeloomError as error:
        sys.stderr.write(f"error: {redact(str(error))}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        sys.stderr.write(redact(f"error: {error.filename or 'a file'}: {error.strerror or error}\n"))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; a run keeps its finished blocks, the same command goes on from there\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> None:
    """End on SIGTERM as a program does that does not handle it, but cleanly."""
    sys.stderr.write("stopped by SIGTERM\n")
    raise SystemExit(143)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: blocks under way come to their end, no other is begun. The second one ends all."""
    stop = threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            _stop()
        stop.set()
        sys.stderr.write("stopped by SIGTERM; a run keeps its finished blocks, the same command goes on from there\n")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
