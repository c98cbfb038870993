"""A finished run, kept as JSON for scripts, and turned into its report from that and the products that stand."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cubeloom.catalogs.documents import read_document
from cubeloom.catalogs.scan import KNOWN_SENSORS
from cubeloom.errors import CubeloomError, InputError
from cubeloom.pipeline.readers import open_scene
from cubeloom.secrets import redact
from cubeloom.untrusted import load_json

from .layout import Layout
from .report import DETAILED, RunSummary, SceneSummary, render_report
from .run import RunResult
from .samples import class_shares, sample_spectra
from .scene_task import SceneResult, open_overview

SAMPLED_SCENES = {"published": 40, "unchanged": 10}
"""Above this many scenes the report shows no spectra and class shares of those in a state: each takes half a second."""


def report_run(result: RunResult) -> Path:
    """Write a run's summary and its report; returns the report's path."""
    folder = Layout(result.out).run(result.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(_summary(result), indent=1) + "\n")
    return report_again(result.out, result.run_id)


def report_again(out: Path, run_id: str | None = None) -> Path:
    """Make the report of a run from its summary and the products that stand.

    Args:
        out: the output directory.
        run_id: which run; the last one by default.

    Raises:
        InputError: there is no such run.
    """
    runs = sorted(path.parent.name for path in (out / "runs").glob("*/summary.json"))
    if not runs or (run_id and run_id not in runs):
        raise InputError(
            f"{out}: no run{f' {run_id}' if run_id else ''} with a summary; it has {', '.join(runs) or 'none'}"
        )
    folder = Layout(out).run(run_id or runs[-1])
    summary = load_json(folder / "summary.json")
    run = RunSummary(
        run_id=summary["run"],
        workflow=summary["workflow"],
        workflow_yaml=summary["workflow_yaml"],
        scenes=tuple(
            _scene_summary(out, summary["workflow"], scene, len(summary["scenes"])) for scene in summary["scenes"]
        ),
        seconds=summary["seconds"],
        machine=summary["machine"],
        versions=summary["versions"],
    )
    return render_report(run, folder / "report.html")


def _summary(result: RunResult) -> dict[str, Any]:
    import yaml

    workflow = result.workflow.model_dump(mode="json", exclude_defaults=True)
    return {
        "run": result.run_id,
        "workflow": result.workflow.name,
        "workflow_yaml": redact(yaml.safe_dump(workflow, sort_keys=False)),
        "machine": result.machine,
        "versions": versions(),
        "seconds": round(result.seconds, 3),
        "scenes": [_scene_record(scene, result.out) for scene in result.scenes],
    }


def _scene_record(scene: SceneResult, out: Path) -> dict[str, Any]:
    return {
        "item": scene.item.id,
        "state": scene.state,
        "cause": scene.cause,
        "attempts": scene.attempts,
        "identity": scene.identity,
        "product": str(scene.product.relative_to(out)) if scene.product else None,
        "href": scene.href or None,
        "seconds": {phase: round(spent, 3) for phase, spent in scene.seconds.items()},
        "blocks": scene.blocks,
        "resumed_blocks": scene.resumed_blocks,
        "bytes": scene.nbytes,
        "clipped": scene.clipped,
        "facts": scene.facts,
        "peak_mib": round(scene.peak_mib, 1),
        "warnings": scene.warnings,
    }


@cache
def versions() -> dict[str, str]:
    """Versions of what makes a product; to look them up takes longer than to write a summary."""
    from importlib.metadata import version

    return {name: version(name) for name in ("cubeloom", "numpy", "xarray", "zarr", "rasterio", "scikit-learn")}


def _scene_summary(out: Path, workflow: str, record: dict[str, Any], scenes: int) -> SceneSummary:
    """What a report says of one scene; a product that was taken away since then only costs its pictures."""
    known = SceneSummary(
        item_id=record["item"],
        state=record["state"],
        cause=record["cause"],
        seconds=record["seconds"],
        peak_mib=record["peak_mib"],
        blocks=record["blocks"],
        resumed=record["resumed_blocks"],
        nbytes=record["bytes"],
        warnings=(*record["warnings"], *_clipped(record["clipped"])),
    )
    product = out / record["product"] if record["product"] else None
    if product is None or record["state"] not in {"published", "unchanged"}:
        return known
    item = Layout(out).item(record["item"], workflow)
    if record["state"] == "unchanged" and scenes > DETAILED:  # the table alone names it
        return _replaced(known, item=item)
    sampled = scenes <= SAMPLED_SCENES[record["state"]]
    try:
        return _with_product(known, item, product, record.get("href"), sampled)
    except CubeloomError as error:
        return _replaced(known, warnings=(*known.warnings, f"the product cannot be shown: {error}"))


def _with_product(known: SceneSummary, item: Path, product: Path, elsewhere: str | None, sampled: bool) -> SceneSummary:
    """What the product's item tells, its pictures, and, where it is sampled, spectra and class shares."""
    told = read_document(item)["properties"]
    pictures = sorted(product.with_suffix(".quicklooks").glob("*.png"), key=_order)
    shown = _replaced(
        known,
        title=_title(told),
        pictures={picture.stem: picture for picture in pictures},
        item=item,
        steps=tuple(str(told.get("processing:lineage", "")).splitlines()),
        licence=str(told.get("cubeloom:licence") or told.get("license") or ""),
        attribution=str(told.get("attribution") or ""),
        facts={key.partition(":")[2]: value for key, value in told.items() if _is_found(key, value)},
    )
    if not sampled:
        return shown
    place = elsewhere if elsewhere and not product.exists() else product
    scene, overview = open_scene(place), open_overview(place)
    classes = class_shares(overview) if "classes" in overview else ()
    return _replaced(shown, spectra=sample_spectra(scene, overview=overview), classes=classes)


def _is_found(key: str, value: object) -> bool:
    """Whether an item's property is what a step found out."""
    return key.startswith("cubeloom:") and isinstance(value, dict)


def _title(told: Mapping[str, Any]) -> str:
    """Sensor, level and time in words, and the sensors of guides, from the properties of an item."""
    platform = str(told.get("platform", ""))
    mission = str(told.get("constellation") or platform)
    sensor = str(KNOWN_SENSORS.get(mission, {}).get("title", mission)) + platform.removeprefix(mission).upper()
    time = datetime.fromisoformat(str(told["datetime"])).astimezone(UTC)
    paired = (told[key]["sensor"] for key in told if key.partition("-")[0] == "cubeloom:pair")
    return ", with ".join([f"{sensor} {told.get('processing:level', '')}, {time:%-d %B %Y %H:%M} UTC", *paired])


def _replaced(scene: SceneSummary, **changes: Any) -> SceneSummary:  # noqa: ANN401 - fields of SceneSummary
    from dataclasses import replace

    return replace(scene, **changes)


def _order(picture: Path) -> tuple[int, str]:
    """True colour first, indices last, then by name: what was measured stands before what was made of it."""
    kind = picture.stem.partition("_")[0]
    return {"truecolour": 0, "index": 2}.get(kind, 1), picture.stem


def _clipped(counts: dict[str, int]) -> list[str]:
    return [f"{count} values of {name} lay out of range and were clipped" for name, count in counts.items()]
