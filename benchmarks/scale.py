"""A catalog on a Dask cluster of two processes beside one such process, and what the scheduler itself costs.

Run: python benchmarks/scale.py [--quick] [--json FILE] [--rounds N] [--work FOLDER]

two_processes  a catalog of simulated L2A scenes of all bands through mask, destripe and denoise (subspace, with
               outliers) to published products, by `run` as it stands: ours on a cluster of two processes of one
               thread each, the peer on one such process. Both have as many scenes under way at once. The clock runs
               from the call to its return, so the start of the cluster, planning, statistics that settle, quicklooks
               and the catalog, which the runner does for all, count on both sides; on two cores they take from ours
               what the peer has a core to spare for. The peer has to take 1.7 times as long.
scheduler      blocks that do nothing (a window in, its overlap with another one out) through the executor of such a
               cluster of two processes: wall clock from the first argument to the last result, over the number of
               blocks, once both workers are up. This holds everything beside a block's own work: handing it over, the
               scheduler's bookkeeping, the way to the worker and back, and taking the result; at most 2 ms. The CPU
               time of the scheduler's process stands beside it, since it tells more on a machine that does other
               things too. The peer is Dask alone: `gather(map(...))` over all the blocks at once.

Each run is a process of its own, ours and the peer's in turn; seconds are medians over the rounds, and so are ratios
(ours over the peer's). Peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMITS = {"two_processes": 1 / 1.7, "scheduler": 2.0}
"""Of ours over the peer; of ms a block."""
FULL = {"scenes": 3, "height": 512, "width": 512, "blocks": 5000}
QUICK = {"scenes": 2, "height": 128, "width": 128, "blocks": 1000}
"""A real scene has five times the pixels of the full ones, beside which what one process does for all matters less."""
AT_ONCE = 3
"""Scenes, on both sides; while one is verified or published, the workers have blocks of the other."""


def main() -> None:
    """Measure both cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small scenes, one round; under a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of ours and the peer in turn")
    parser.add_argument("--work", type=Path, help="keep the simulated catalog here, for the next time")
    parser.add_argument("--run", nargs=4, metavar=("CASE", "SIDE", "SIZE", "CATALOG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(*arguments.run)
        return
    size, rounds = (QUICK, 1) if arguments.quick else (FULL, arguments.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        catalog = _catalog(arguments.work or Path(scratch), size)
        print(f"{'case':15}{'ours s':>9}{'peer s':>9}{'ratio':>7}{'limit':>7}{'MiB':>6}")
        rows = [_two_processes(catalog, rounds), _scheduler(size["blocks"], rounds)]
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def _catalog(folder: Path, size: dict[str, int]) -> Path:
    """Simulated scenes with a catalog of them, made once."""
    from cubeloom.pipeline.simulate import simulate_catalog
    from cubeloom.workflows.scan import scan

    place = folder / "scale-{scenes}x{height}x{width}".format(**size)
    if not (place / "catalog").exists():
        simulate_catalog(place / "in", size["scenes"], height=size["height"], width=size["width"], seed=1)
        scan(place / "in", place / "catalog")
    return place / "catalog"


def _two_processes(catalog: Path, rounds: int) -> dict[str, Any]:
    row = _compared("two_processes", 0, catalog, rounds)
    row["limit"] = LIMITS["two_processes"]
    row["speedup"] = 1 / row["ratio"]
    _print(row)
    return row


def _scheduler(blocks: int, rounds: int) -> dict[str, Any]:
    row = _compared("scheduler", blocks, Path(), rounds)
    row["ms_per_block"], row["limit_ms_per_block"] = 1000 * row["ours_s"] / blocks, LIMITS["scheduler"]
    row["peer_ms_per_block"], row["cpu_ms_per_block"] = 1000 * row["peer_s"] / blocks, 1000 * row["cpu_s"] / blocks
    _print(row)
    print(
        "{:15}{ms_per_block:7.2f}ms{peer_ms_per_block:7.2f}ms{:7}{limit_ms_per_block:5.2f}ms a block; "
        "{cpu_ms_per_block:.2f} ms of CPU".format("", "", **row),
        flush=True,
    )
    return row


def _compared(case: str, blocks: int, catalog: Path, rounds: int) -> dict[str, Any]:
    """Both sides of a case in turn."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for side, done in runs.items():
            command = [sys.executable, __file__, "--run", case, side, str(blocks), str(catalog)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            done.append(json.loads(result.stdout))
    pairs = zip(runs["ours"], runs["peer"], strict=True)
    return {
        "case": case,
        "ours_s": statistics.median(run["seconds"] for run in runs["ours"]),
        "peer_s": statistics.median(run["seconds"] for run in runs["peer"]),
        "ratio": statistics.median(ours["seconds"] / peer["seconds"] for ours, peer in pairs),
        "cpu_s": statistics.median(run["cpu_s"] for run in runs["ours"]),
        "peak_mib": max(run["peak_mib"] for run in runs["ours"]),
    }


def _print(row: dict[str, Any]) -> None:
    limit = f"{row['limit']:7.2f}" if "limit" in row else " " * 7
    numbers = f"{row['ours_s']:9.2f}{row['peer_s']:9.2f}{row['ratio']:7.2f}{limit}{row['peak_mib']:6.0f}"
    print(f"{row['case']:15}{numbers}", flush=True)


def _one_run(case: str, side: str, blocks: str, catalog: str) -> None:
    if case == "two_processes":
        measured = _run_catalog(Path(catalog), 2 if side == "ours" else 1)
    else:
        measured = _no_ops(int(blocks), side)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({**measured, "peak_mib": peak / 1024}))


def _run_catalog(catalog: Path, processes: int) -> dict[str, float]:
    from cubeloom.catalogs.items import read_catalog
    from cubeloom.workflows.run import RunOptions, run
    from cubeloom.workflows.schema import Workflow

    steps = ["mask", "destripe", {"denoise": {"method": "subspace", "outliers": True}}]
    workflow, items = Workflow.model_validate({"name": "scale", "steps": steps}), read_catalog(catalog)
    options = RunOptions(workers=processes, scenes=AT_ONCE, scheduler="processes")
    with tempfile.TemporaryDirectory() as out:
        started, cpu = time.perf_counter(), time.process_time()
        result = run(workflow, items, Path(out), options)
        measured = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    if result.exit_code:
        raise RuntimeError(f"a scene failed: {[scene.cause for scene in result.scenes]}")
    return measured


def _no_ops(blocks: int, side: str) -> dict[str, float]:
    from cubeloom.pipeline.cluster import Cluster
    from cubeloom.pipeline.executor import open_executor
    from cubeloom.pipeline.grids import Window, tile

    windows = list(tile((128 * blocks, 128), (128, 128)))
    around = Window(0, 0, 128 * blocks, 128)
    with open_executor(2, "processes") as executor:
        assert isinstance(executor, Cluster)
        list(executor.map(Window.overlap, windows[:100], common=(around,)))
        started, cpu = time.perf_counter(), time.process_time()
        if side == "ours":
            made = list(executor.map(Window.overlap, windows, common=(around,)))
        else:
            made = executor.client.gather(executor.client.map(Window.overlap, windows, [around] * blocks, pure=False))
        measured = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    assert made == windows
    return measured


if __name__ == "__main__":
    main()
