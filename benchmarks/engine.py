"""The inference engine beside the bare network: what it costs to take a whole scene through, store to store.

Run: python benchmarks/engine.py [--quick] [--json FILE] [--rounds N] [--work FOLDER] [--network NAME]

The scene is a simulated L2A product of all bands, repeated to the size wanted, in a published store. Ours opens it,
takes statistics, computes all tiles, and publishes a store with measurement, denoised cube, overviews, hashes and
verification. The peer has a tile in memory, ready for the network, and calls the forward as often as ours must: nothing
is read, blended or written. Both use the network's form for inference, two threads with a tile each, and large pages
for their tensors.

overhead    ours over the forward on the same tiles; at most 1.10
halo        ours over the forward on the scene cut once without overlap, in tiles of the same largest size; at most 1.35
components  as overhead, but on component images: finding them is our method's work that no forward does; no limit
memory      peak memory of ours at four times the scene's length over that at once its length; at most 1.10

The network has random weights, which take as long as others. It sees all bands in windows of 31, or 31 component
images. Each run is a process of its own, ours and the peer's in turn. Seconds are wall clock without imports and
loading; CPU seconds stand beside them, since they tell more on a machine that does other things too. Ratios are medians
over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubeloom.pipeline.readers.base import Source
    from cubeloom.pipeline.stages import Denoise

LIMITS = {"overhead": 1.10, "halo": 1.35, "memory": 1.10}
TILE, HALO = 256, 24
FULL = {"bands": (500, 500), "eigenimages": (1000, 1000)}
SMALL = {"bands": (110, 110)}
"""Height and width, px, by what the network sees; the full ones keep it busy for a minute or half of one."""
LENGTH, SHORT = 720, 488
"""Of the scene in the case `memory`, px: already there all threads have a tile of the largest size."""
WIDTH = 256
SIMULATED = (128, 128)
WORKERS = 2


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small scenes, one round; under a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of ours and the peers in turn")
    parser.add_argument("--work", type=Path, help="keep the scenes here, for the next time")
    parser.add_argument("--network", default="hsdt_s", help="family of the network")
    parser.add_argument(
        "--run", nargs=5, metavar=("SIDE", "STORE", "WEIGHTS", "NETWORK", "OUT"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(*arguments.run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(arguments.work or Path(scratch), Path(scratch), arguments.network)
        rounds = 1 if arguments.quick else arguments.rounds
        print(f"{'case':12}{'ours s':>8}{'peer s':>8}{'ratio':>7}{'CPU s':>8}{'peer':>8}{'ratio':>7}{'limit':>7}")
        rows = []
        for kind, shape in (SMALL if arguments.quick else FULL).items():
            rows += bench.times(kind, shape, rounds)
        rows.append(bench.memory(SHORT if arguments.quick else LENGTH))
    if arguments.json:
        arguments.json.write_text(json.dumps({"network": arguments.network, "rows": rows}, indent=1))


class _Bench:
    """Scenes, weights, and runs in processes of their own."""

    def __init__(self, work: Path, scratch: Path, network: str) -> None:
        self.work, self.scratch, self.network = work, scratch, network

    def times(self, kind: str, shape: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
        """The cases that compare times, of one transform."""
        store, weights = self._store(*shape), self._weights(kind)
        peers = {"overhead": "tiles", "halo": "once"} if kind == "bands" else {"components": "tiles"}
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in ("ours", *peers.values())}
        for _ in range(rounds):
            for side, done in runs.items():
                done.append(self._run(side, store, weights))
        return [_row(case, runs["ours"], runs[peer]) for case, peer in peers.items()]

    def memory(self, length: int) -> dict[str, Any]:
        """The case `memory`."""
        weights = self._weights("eigenimages")
        once, four = (self._run("ours", self._store(times * length, WIDTH), weights)["peak_mib"] for times in (1, 4))
        ratio, limit = four / once, LIMITS["memory"]
        print(f"{'memory':12}{four:5.0f}MiB{once:5.0f}MiB{ratio:7.2f}{limit:30.2f}", flush=True)
        return {"case": "memory", "peak_mib": once, "peak_mib_at_4x": four, "ratio": ratio, "limit": limit}

    def _store(self, height: int, width: int) -> Path:
        """A simulated scene, repeated, in a store that is made once."""
        import numpy as np

        import cubeloom
        from cubeloom.pipeline.readers import open_source
        from cubeloom.pipeline.simulate import simulate_scene

        path = self.work / f"engine-{height}x{width}.zarr"
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                product = simulate_scene(Path(folder), seed=1, height=SIMULATED[0], width=SIMULATED[1]).path
                scene = cubeloom.open_scene(product).load()
                spec = open_source(product).spec
            rows, cols = (np.arange(size) % full for size, full in zip((height, width), spec.shape, strict=True))
            large = scene.isel(y=rows, x=cols)
            grid = spec.grid.resolution
            corner_x, corner_y = float(scene.x[0]), float(scene.y[0])
            centres = {"y": corner_y + grid.y * np.arange(height), "x": corner_x + grid.x * np.arange(width)}
            cubeloom.write_scene(large.assign_coords(centres).chunk(y=256, x=256), path)
        return path

    def _weights(self, kind: str) -> Path:
        """Random weights with a card that asks for the transform."""
        from cubeloom.models.registry import create_model, model_card, save_model

        path = self.scratch / f"{self.network}.{kind}.safetensors"
        if not path.exists():
            settings = {"in_channels": 2 if kind == "eigenimages" else 1}
            told = {"tag": kind, "name": f"{self.network}.{kind}", "transform": kind, "tile": TILE, "halo": HALO}
            card = model_card(self.network, None, **settings).model_copy(update=told)
            save_model(create_model(self.network, None, **settings), path, card)
        return path

    def _run(self, side: str, store: Path, weights: Path) -> dict[str, float]:
        """One run in a fresh process; what it printed."""
        arguments = [side, store, weights, self.network, self.scratch / "out.zarr"]
        command = [sys.executable, __file__, "--run", *map(str, arguments)]
        environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return dict(json.loads(result.stdout))


def _row(case: str, ours: list[dict[str, float]], peer: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of a case, printed as a line of the table."""
    row: dict[str, Any] = {"case": case, "limit": LIMITS.get(case)}
    line = f"{case:12}"
    for key in ("seconds", "cpu_s"):
        row[key] = statistics.median(run[key] for run in ours)
        row[f"peer_{key}"] = statistics.median(run[key] for run in peer)
        row[f"ratio_{key}"] = statistics.median(a[key] / b[key] for a, b in zip(ours, peer, strict=True))
        line += f"{row[key]:8.2f}{row[f'peer_{key}']:8.2f}{row[f'ratio_{key}']:7.2f}"
    print(line + (f"{row['limit']:7.2f}" if row["limit"] else ""), flush=True)
    return row


def _one_run(side: str, store: str, weights: str, network: str, out: str) -> None:
    from cubeloom.models.registry import model_card
    from cubeloom.pipeline.readers import open_source
    from cubeloom.pipeline.stages import Denoise

    rank = 31 if model_card(network, weights).transform == "eigenimages" else "auto"
    stage = Denoise(method="network", model=network, weights=weights, rank=rank)
    source = open_source(Path(store))
    measured = _ours(source, stage, Path(out)) if side == "ours" else _peer(source, stage, side)
    print(json.dumps({**measured, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


class _Clock:
    """Wall clock and CPU seconds of a block of code."""

    def __enter__(self) -> _Clock:
        self.started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self.started
        self.measured = {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _ours(source: Source, stage: Denoise, out: Path) -> dict[str, float]:
    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.stages import Mask

    stage.tile_bytes(source.spec)  # loads the network, as the peer does before its clock starts
    with _Clock() as clock:
        run_to_store(source, [Mask(), stage], out, overwrite=True, workers=WORKERS)
    return clock.measured


def _peer(source: Source, stage: Denoise, side: str) -> dict[str, float]:
    import torch

    from cubeloom.models.registry import create_model
    from cubeloom.pipeline.tiles import Lattice, Tiling

    count, channels, bands = stage._network.sample_shape(source.spec)
    tiling = stage.tiling(source.spec)
    if side == "once":
        tiling = Tiling(tiling.edge, 0, tiling.multiple, tiling.channels)
    lattice = Lattice.of(source.spec.shape, tiling)
    network = create_model(stage.model, stage.weights).for_inference()
    x = torch.rand(1, channels, bands, *lattice.shape)

    def forward(_: int) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            network(x)

    with _Clock() as clock, ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(forward, range(count * len(lattice))))
    return clock.measured


if __name__ == "__main__":
    main()
