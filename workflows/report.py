"""The report of a run: one HTML file that needs nothing beside it, for one scene or for hundreds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubeloom.errors import ConfigError

from .figures import gaps, noise_uri, picture_uri, spectra_uri
from .samples import ClassShare, Noise, Spectra

if TYPE_CHECKING:
    from jinja2 import Template

STATES = {
    "failed": "failed",
    "invalid": "not taken",
    "aborted": "not reached",
    "published": "published",
    "unchanged": "unchanged",
}
"""States of a scene in the order of the page, and what they are called there."""

_ADVICE = {
    "failed": "Mend the cause and run the same command again: what is finished is left alone.",
    "invalid": "The workflow does not take such a scene. Leave it out with --items, or run another workflow on it.",
    "aborted": "Run the same command again: it goes on at the next missing block.",
}
DETAILED = 40
"""With more scenes than this the pictures are smaller and plots are left out, so that the page stays light."""
_PICTURE_SIDE = {True: 560, False: 200}
_THUMBNAIL_SIDE = 72
_PHASE_COLOURS = ("#1d5f74", "#7fa7b3", "#c4845a", "#dcb99f", "#8f9a7a", "#c9cdbf", "#b9b2a4")
_CAPTIONS = {
    "truecolour": "true colour",
    "swir": "shortwave infrared",
    "polarisations": "two polarisations and their ratio",
    "grey": "one band",
}


@dataclass(frozen=True, eq=False)
class SceneSummary:
    """What became of one scene.

    Attributes:
        item_id: id of the catalog item.
        state: one of `STATES`.
        cause: why it failed or was not taken.
        advice: what to do about it; a general hint where empty.
        title: sensor, level and time in words.
        seconds: wall time of each phase.
        peak_mib: peak memory of the process, MiB.
        blocks: block tasks, of which `resumed` stood already.
        nbytes: size of the product.
        pictures: PNGs by name, as `write_quicklooks` names them.
        spectra, noise, classes: what was sampled; None or empty where nothing was.
        item: the product's STAC item.
        steps: the product's history.
        facts: what the steps found out of the whole scene, by their names.
        licence, attribution: of the source.
        warnings: what went wrong beside the product.
    """

    item_id: str
    state: str
    cause: str = ""
    advice: str = ""
    title: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_mib: float = 0.0
    blocks: int = 0
    resumed: int = 0
    nbytes: int = 0
    pictures: Mapping[str, Path] = field(default_factory=dict)
    spectra: Spectra | None = None
    noise: Noise | None = None
    classes: tuple[ClassShare, ...] = ()
    item: Path | None = None
    steps: tuple[str, ...] = ()
    facts: Mapping[str, Mapping[str, float | int | str]] = field(default_factory=dict)
    licence: str = ""
    attribution: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Wall time of all phases."""
        return sum(self.seconds.values())


@dataclass(frozen=True, eq=False)
class RunSummary:
    """A whole run: its id (UTC time), workflow, machine, software versions, wall time and scenes."""

    run_id: str
    workflow: str
    workflow_yaml: str
    scenes: tuple[SceneSummary, ...]
    seconds: float
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def render_report(run: RunSummary, out: Path) -> Path:
    """Write the report as one HTML file at `out`, with every picture and plot inside it.

    Links to items are relative to the report.

    Raises:
        ConfigError: a scene has a state that is none of `STATES`.
    """
    for scene in run.scenes:
        if scene.state not in STATES:
            raise ConfigError(f"{scene.item_id}: state {scene.state!r}; expected one of {', '.join(STATES)}")
    text = page_template().render(_page(run, out))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(out)


@cache
def page_template() -> "Template":
    """The template of the page; to compile it takes a tenth of a second."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("cubeloom.workflows", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "amount": amount}
    return environment.get_template("report.html.j2")


def duration(seconds: float) -> str:
    """Seconds in words: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def amount(nbytes: float) -> str:
    """Bytes in words, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if nbytes >= 100 or unit == "B" else f"{nbytes:.1f} {unit}"


def _page(run: RunSummary, out: Path) -> dict[str, Any]:
    """The template's variables."""
    order = list(STATES)
    scenes = sorted(run.scenes, key=lambda scene: order.index(scene.state))
    detailed = len(scenes) <= DETAILED
    return {
        "run": run,
        "started": _start(run.run_id),
        "states": STATES,
        "counts": {state: sum(scene.state == state for scene in scenes) for state in STATES},
        "cards": [_card(number, scene, detailed, out) for number, scene in enumerate(scenes, 1)],
        "peak_mib": max((scene.peak_mib for scene in scenes), default=0.0),
        "nbytes": sum(scene.nbytes for scene in scenes),
        "blocks": sum(scene.blocks - scene.resumed for scene in scenes if scene.state == "published"),
        "credits": sorted(
            {(scene.attribution, scene.licence) for scene in scenes if scene.attribution or scene.licence}
        ),
        "detailed": detailed,
        "phase_colours": _PHASE_COLOURS,
    }


def _card(number: int, scene: SceneSummary, detailed: bool, out: Path) -> dict[str, Any]:
    """One scene, with its figures."""
    from os.path import relpath

    side = _PICTURE_SIDE[detailed]
    thumbnail = scene.pictures.get("thumbnail")
    shown = _in_pairs(scene.pictures)[: None if detailed else 2]
    return {
        "anchor": f"scene-{number}",
        "scene": scene,
        "has_section": scene.state in ("failed", "invalid", "published") or (detailed and scene.state == "unchanged"),
        "advice": scene.advice or _ADVICE.get(scene.state, ""),
        "columns": _columns(len(shown)) if detailed else "small",
        "thumbnail": picture_uri(thumbnail, _THUMBNAIL_SIDE) if thumbnail else "",
        "pictures": [{"caption": _caption(name), "uri": picture_uri(path, side)} for name, path in shown],
        "map": picture_uri(scene.pictures["classes"], side) if "classes" in scene.pictures else "",
        "spectra": spectra_uri(scene.spectra) if scene.spectra and scene.spectra.samples and detailed else "",
        "has_gaps": bool(scene.spectra and gaps(scene.spectra.bands)),
        "noise": noise_uri(scene.noise) if scene.noise and detailed else "",
        "href": Path(relpath(scene.item, out.parent)).as_posix() if scene.item else "",
    }


def _columns(pictures: int) -> str:
    """The class of a grid of so many pictures, whose last row is as full as can be."""
    return {1: "one", 2: "two"}.get(pictures, "three" if -pictures % 3 < -pictures % 4 else "")


def _in_pairs(pictures: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """The composites, each measurement followed by what was made of it."""
    names = [name for name in pictures if name.partition("_")[0] not in ("thumbnail", "classes")]
    kinds = dict.fromkeys(name.partition("_")[0] for name in names)
    return [(name, pictures[name]) for kind in kinds for name in names if name.partition("_")[0] == kind]


def _caption(name: str) -> str:
    kind, _, cube = name.partition("_")
    if kind == "index":
        return cube
    shown = _CAPTIONS.get(kind, kind)
    return f"{shown}, {cube.replace('_', ' ')}" if cube else shown


def _start(run_id: str) -> str:
    """The run's start in words, from its id; the id itself where it is no time."""
    try:
        time = datetime.strptime(run_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return run_id
    return f"{time.day} {time:%B %Y, %H:%M} UTC"
