"""Four hundred small scenes, one in twenty of them broken, under random kills: what stands at the end, to the row.

`make soak`; `python tests/soak.py --scenes 24` for a short one. Prints what a scene takes, how much of it is not spent
on its pixels, and how long a rerun of the finished catalog takes.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from faults.reader import breaches, contents, leftovers

from cubeloom.catalogs.items import read_catalog
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.workflows.inspect import validate_path
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import Ledger
from cubeloom.workflows.scan import scan

WORKFLOW = """
name: soak
levels: [L2A]
steps:
  - mask
  - destripe
"""
SIZE: Mapping[str, Any] = {"height": 64, "width": 64, "n_vnir": 4, "n_swir": 4}
RunFor = Callable[[Sequence[str], float], int | None]
"""Runs the command line with arguments; kills it after some seconds and gives None, or gives its exit code."""


@dataclass(frozen=True)
class Harm:
    """A way to break a product.

    Attributes:
        options: of the simulation.
        harm: what is done to the product's folder or archive once it is in the catalog.
        cause: what the quarantine must say, a regular expression.
        state: of the scene in the ledger.
    """

    harm: Callable[[Path], None]
    cause: str
    state: str = "failed"
    options: Mapping[str, Any] | None = None


def _one(product: Path, ending: str) -> Path:
    (path,) = product.glob(f"*{ending}")
    return path


def _cut(ending: str, share: float) -> Callable[[Path], None]:
    def harm(product: Path) -> None:
        path = _one(product, ending) if product.is_dir() else product
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return harm


def _entities(product: Path) -> None:
    path = _one(product, "-METADATA.XML")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    head, tail = path.read_text().split("?>", 1)
    path.write_text(f"{head}?>{bomb}{tail}")


def _rewritten(ending: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Write a raster anew with other numbers."""

    def harm(product: Path) -> None:
        path = _one(product, ending)
        with rasterio.open(path) as source:
            profile, data = source.profile, change(source.read())
        profile |= {"count": len(data), "height": data.shape[1], "width": data.shape[2]}
        path.unlink()
        with rasterio.open(path, "w", **profile) as target:
            target.write(data)

    return harm


def _bomb(product: Path) -> None:
    path = _one(product, "-SPECTRAL_IMAGE.TIF")
    path.unlink()
    profile = {"driver": "GTiff", "count": 8, "dtype": "int16", "height": 60_000, "width": 60_000, "SPARSE_OK": True}
    profile["transform"] = rasterio.Affine(30, 0, 0, 0, -30, 0)
    with rasterio.open(path, "w", tiled=True, BIGTIFF="YES", **profile):
        pass


def _reference(product: Path) -> None:
    _one(product, "-SPECTRAL_IMAGE.TIF").write_text('<VRTDataset rasterXSize="64" rasterYSize="64"></VRTDataset>')


def _escaping(product: Path) -> None:
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr("../../escaped.txt", "outside")


def _nothing(product: Path) -> None:
    pass


ZIP = {"container": "zip"}
HARMS: Mapping[str, Harm] = {
    "image cut short": Harm(_cut("-SPECTRAL_IMAGE.TIF", 0.5), r"SPECTRAL_IMAGE\.TIF: cannot read rows .* cut short"),
    "image empty": Harm(_cut("-SPECTRAL_IMAGE.TIF", 0.0), r"SPECTRAL_IMAGE\.TIF: the file is empty"),
    "metadata missing": Harm(lambda product: _one(product, "-METADATA.XML").unlink(), r"METADATA\.XML: no such file"),
    "metadata cut short": Harm(_cut("-METADATA.XML", 0.6), r"METADATA\.XML: not well-formed"),
    "metadata with entities": Harm(_entities, r"METADATA\.XML: the XML declares a DTD, entities"),
    "band missing": Harm(_rewritten("-SPECTRAL_IMAGE.TIF", lambda data: data[:-1]), r"the image has 7 bands, but"),
    "mask of another size": Harm(
        _rewritten("-QL_QUALITY_CLOUD.TIF", lambda data: data[:, :40]), r"QUALITY_CLOUD\.TIF: has 40 x 64 px"
    ),
    "raster bomb": Harm(_bomb, r"SPECTRAL_IMAGE\.TIF: the header declares 8 bands of 60000 x 60000 px"),
    "reference as raster": Harm(_reference, r"SPECTRAL_IMAGE\.TIF: cannot be opened as GTiff"),
    "archive cut short": Harm(_cut("", 0.4), r"\.ZIP: not a readable ZIP archive", options=ZIP),
    "archive that escapes": Harm(_escaping, r"'\.\./\.\./escaped\.txt' would be unpacked outside", options=ZIP),
    "level not taken": Harm(_nothing, r"takes level L2A, the scene is L1C", "invalid", {"level": "L1C"}),
}


@dataclass(frozen=True)
class Delivery:
    """A catalog, and how each of its broken items was broken."""

    catalog: Path
    workflow: Path
    scenes: int
    broken: Mapping[str, str]

    def arguments(self, out: Path) -> list[str]:
        """The command that runs it."""
        return ["run", str(self.workflow), "--catalog", str(self.catalog), "--out", str(out), "--workers", "2"]


def deliver(folder: Path, scenes: int, broken_scenes: int, seed: int) -> Delivery:
    """Simulate the scenes, list them, and break some: what was sound when it was listed need not stay so."""
    chance = random.Random(seed)
    kinds = [list(HARMS)[n % len(HARMS)] for n in range(broken_scenes)]
    places = dict(zip(chance.sample(range(scenes), len(kinds)), kinds, strict=True))
    broken, products = {}, {}
    for number in range(scenes):
        kind = places.get(number)
        options = {**SIZE, **((HARMS[kind].options if kind else None) or {})}
        made = simulate_scene(folder / "in", seed=1000 * seed + number, **options)
        if kind:
            broken[made.scene_id], products[made.scene_id] = kind, made.path
    catalog = scan(folder / "in", folder / "catalog")
    assert not catalog.rejected
    assert len(catalog.items) == scenes
    for item, kind in broken.items():
        HARMS[kind].harm(products[item])
    workflow = folder / "soak.yaml"
    workflow.write_text(WORKFLOW)
    return Delivery(catalog.catalog, workflow, scenes, broken)


def run_under_kills(delivery: Delivery, out: Path, run_for: RunFor, moments: Iterator[float], least: int) -> int:
    """Kill run after run until one comes to its end, after `least` kills at the earliest; gives how many there were."""
    for kills, seconds in enumerate(moments):
        code = run_for([*delivery.arguments(out), "--again"], seconds)  # no scene is to blame for a death
        if code is not None and kills >= least:
            assert code == 3, f"exit code {code}"
            return kills
    raise AssertionError("moments do not end")


def check(delivery: Delivery, out: Path) -> None:
    """Everything that must stand, and nothing else."""
    layout, workflow = Layout(out), delivery.workflow.stem
    with Ledger(layout.ledger, readonly=True) as ledger:
        rows = ledger.scenes()
    assert len(rows) == len({(row.item, row.workflow) for row in rows}) == delivery.scenes
    states = {row.item: row.state for row in rows}
    wanted = {item.id: "succeeded" for item in read_catalog(delivery.catalog)}
    wanted |= {item: HARMS[kind].state for item, kind in delivery.broken.items()}
    wrong = {item: (state, wanted[item]) for item, state in states.items() if state != wanted[item]}
    assert not wrong, wrong
    _check_causes(delivery, layout, {row.item: row.cause or "" for row in rows})
    assert not list(breaches(out))
    published = delivery.scenes - len(delivery.broken)
    assert len(list(out.glob("scenes/*/*.json"))) == len(list(out.glob("scenes/*/*.zarr"))) == published
    assert len(read_catalog(out)) == published
    assert sum("metadata files match" in line for line in validate_path(out)) == published
    expected = {f"('{row.item}', '{row.state}')" for row in rows if row.state != "succeeded"}
    expected |= {str(layout.quarantine(item, workflow).parent) for item in delivery.broken}
    assert set(leftovers(out)) == expected, set(leftovers(out)) ^ expected
    assert not list(out.parent.rglob("escaped.txt"))


def _check_causes(delivery: Delivery, layout: Layout, causes: Mapping[str, str]) -> None:
    problems = []
    for item, kind in delivery.broken.items():
        note = json.loads(layout.quarantine(item, delivery.workflow.stem).read_text())
        if note["cause"] != causes[item] or note["item"] != item:
            problems.append(f"{kind}: the quarantine says {note['cause']!r}, the ledger {causes[item]!r}")
        if not re.search(HARMS[kind].cause, note["cause"], re.DOTALL) or "traceback" in note:
            problems.append(f"{kind}: {note['cause']}\n{''.join(note.get('traceback', []))}")
    assert not problems, "\n".join(problems)


def events(out: Path, name: str) -> list[dict[str, Any]]:
    """What the logs of all runs tell under a name."""
    lines = [line for log in out.glob("runs/*/log.jsonl") for line in log.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if event["event"] == name]


def stamps(out: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of change of all that readers get."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("scenes/**/*") if path.is_file()}


def growing(shortest: float, longest: float, chance: random.Random) -> Iterator[float]:
    """Seconds before each kill; longer each time, so that a machine with little time to spare comes to an end too."""
    for number in range(1000):
        yield chance.uniform(shortest, longest) * 1.1**number


def soak(
    folder: Path, scenes: int, broken: int, seed: int, run_for: RunFor, moments: tuple[float, float], least: int
) -> str:
    """The whole of it; gives what was measured, in words.

    Args:
        folder: to work in.
        scenes: how many.
        broken: how many of them are broken.
        seed: decides what is broken, and when runs are killed.
        run_for: how a command is run.
        moments: seconds after which the first run is killed, at least and at most; later ones have longer.
        least: kills, at least.
    """
    chance = random.Random(seed)
    delivery = deliver(folder, scenes, broken, seed)
    out, calm = folder / "out", folder / "calm"
    kills = run_under_kills(delivery, out, run_for, growing(*moments, chance), least)
    check(delivery, out)
    calm_s = _timed(run_for, delivery.arguments(calm))
    check(delivery, calm)
    assert contents(out) == contents(calm), "kills show in a product"
    blocks = sum(sum(event["seconds"].values()) for event in events(calm, "block"))
    before, done = stamps(calm), len(events(calm, "block"))
    rerun_s = _timed(run_for, delivery.arguments(calm))
    states = Counter(event["state"] for event in events(calm, "scene ends"))
    published = scenes - len(delivery.broken)
    assert states["published"] == states["unchanged"] == published, states
    assert stamps(calm) == before, "the rerun wrote something"
    assert not [e for e in events(calm, "block")[done:] if e["item"] not in delivery.broken], (
        "the rerun computed something"
    )
    check(delivery, calm)
    return "\n".join(
        [
            f"{scenes} scenes, {kills} kills: {published} published, {len(delivery.broken)} quarantined, ledger exact",
            f"undisturbed: {calm_s:.1f} s, {1000 * calm_s / scenes:.0f} ms a scene; inside block tasks "
            f"{1000 * blocks / scenes:.0f} ms a scene; beyond them {1000 * (calm_s - blocks) / scenes:.0f} ms a scene",
            f"rerun of the finished catalog: {rerun_s:.1f} s",
        ]
    )


def _timed(run_for: RunFor, arguments: Sequence[str]) -> float:
    started = time.perf_counter()
    code = run_for(arguments, 3600.0)
    assert code == 3, f"exit code {code}"
    return time.perf_counter() - started


def run_for(arguments: Sequence[str], seconds: float) -> int | None:
    """A process of its own, as an operator starts it."""
    command = [sys.executable, "-m", "cubeloom.workflows.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="stays afterwards; by default a temporary one, which goes")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        broken = max(options.scenes // 20, 1)
        print(soak(folder, options.scenes, broken, options.seed, run_for, (3.0, 12.0), least=4))
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
