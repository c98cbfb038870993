"""Commands on catalogs and whole runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import (
    CORES,
    Json,
    Keep,
    KeepLocal,
    Memory,
    Open,
    PublishTo,
    Retries,
    Scenes,
    Scheduler,
    Workers,
    open_settings,
)
from .stopping import stoppable

app = typer.Typer()


@app.command()
def run(
    workflow: Annotated[str, typer.Argument(help="A workflow of the library by name, or a YAML file.")],
    catalog: Annotated[Path, typer.Option(help="STAC catalog, collection, item collection or item.")],
    out: Annotated[Path, typer.Option(help="Directory for products, items and reports.")],
    items: Annotated[list[str] | None, typer.Option(help="Ids or patterns of items to take; may be repeated.")] = None,
    bbox: Annotated[str | None, typer.Option(help="west,south,east,north in degrees.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take no more than this many items.", min=1)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="STEP.PARAMETER=VALUE; may be repeated.")] = None,
    opened: Open = None,
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
    from .pairing import paired
    from .run import RunOptions
    from .run import run as run_workflow
    from .schema import load_workflow
    from .summary import report_run

    chain = load_workflow(workflow, [*(settings or ()), *open_settings(opened)])
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
    chosen = select_items(known, ids=items or (), bbox=parse_bbox(bbox) if bbox else None)
    fitting = chosen if items else chain.of_its_sensors(chosen)
    if len(fitting) < len(chosen):
        say(f"left out: {counted(len(chosen) - len(fitting), 'item')} of other sensors than {', '.join(chain.sensors)}")
    chosen = paired(chain, fitting, known)[:limit]
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
    opened: Open = None,
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
        settings=(*(settings or ()), *open_settings(opened)),
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
    print_table(f"{out}: {counts}; {'a run is at work' if found.running else 'no run is at work'}", *found.table())


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="An output directory.")],
    run_id: Annotated[str | None, typer.Option("--run", help="Which run; by default the last.")] = None,
) -> None:
    """Make the report of a finished run anew from its summary and its products."""
    from .console import say
    from .summary import report_again

    say(f"{report_again(out, run_id)}")
