"""A labelled scene by FreeNet, whole, beside one by a convolutional network on the patch about every pixel.

Run: python benchmarks/classify.py [--quick] [--json FILE] [--rounds N] [--threads N]

The scene has the size of Pavia University, 610 × 340 px and 103 bands, 9 classes; its values are random, and so are
the weights, of which no time depends on. Ours is `create_model("freenet").for_inference()`, which labels all pixels in
one pass. The peer is a two-dimensional network on patches of 27 × 27 px and all bands, after Chen, Jiang, Li, Jia and
Ghamisi (TGRS 2016): convolutions of 4, 5 and 4 px with 32, 64 and 128 features, each with a rectifier, maxima over
2 × 2 px after the first two, and a linear layer. Theirs are three-dimensional and take far longer still.

The peer is run well: patches are a strided view of the mirrored image, whose bands lie together in memory, and are
copied by two rows of pixels, 680 patches at a time, which is how its convolutions take them fastest. Both run in
inference mode with the same number of threads and the same allocator, from the standardised cube to class numbers.

Each run is a process of its own, peer and ours in turn: once to warm up, then the peer once and ours the median of five
passes. The ratio is ours over peer, median of the pairs, and `faster` its inverse. The short run has the peer label 24
of the 610 rows and takes its time for them times 610 / 24. Memory is the largest resident size of the process, the cube
in it.

No more than 1e-5 may lie between our scores and those of FreeNet as its authors write it, or between the peer's and
those of its patches one by one, which the benchmark checks on a part of the scene.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEIGHT, WIDTH, BANDS, CLASSES = 610, 340, 103, 9
PATCH = 27
ROWS = 2
"""Of pixels that the peer takes at once."""
SHORT = 24
"""Rows that the peer labels in the short run."""
WANTED = 50
"""How many times as fast FreeNet is to be."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of the peer's pixels, one round; under a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs; the peer takes minutes for each")
    parser.add_argument("--threads", type=int, default=0, help="of both; 0 leaves it to torch")
    parser.add_argument("--run", nargs=2, metavar=("SIDE", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(arguments.run[0], int(arguments.run[1]), arguments.threads)
        return
    rows, rounds = (SHORT, 1) if arguments.quick else (HEIGHT, arguments.rounds)
    row = _case(rows, rounds, arguments.threads)
    _print(row)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": [row]}, indent=1))


def _case(rows: int, rounds: int, threads: int) -> dict[str, Any]:
    pairs = [tuple(_in_process(side, rows, threads) for side in ("peer", "ours")) for _ in range(rounds)]
    peer, ours = zip(*pairs, strict=True)
    seconds = {
        name: statistics.median(one["seconds"] for one in runs) for name, runs in (("peer", peer), ("ours", ours))
    }
    ratio = statistics.median(ours["seconds"] / peer["seconds"] for peer, ours in pairs)
    return {
        "case": "freenet",
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": ratio,
        "faster": 1 / ratio,
        "wanted": WANTED,
        "peak_mib": max(one["peak_mib"] for one in ours),
        "peer_peak_mib": max(one["peak_mib"] for one in peer),
        "ours_gflops": ours[0]["gflop"] / seconds["ours"],
        "peer_gflops": peer[0]["gflop"] / seconds["peer"],
        "peer_rows": rows,
        "difference": max(one["difference"] for one in (*peer, *ours)),
        "threads": ours[0]["threads"],
        "rounds": rounds,
    }


def _print(row: dict[str, Any]) -> None:
    columns = ("ours s", "peer s", "ratio", "faster", "ours MiB", "peer MiB", "GFLOP/s", "peer's", "difference")
    print(f"{'case':12}" + "".join(f"{column:>11}" for column in columns))
    forms = {
        "ours_s": ".3f",
        "peer_s": ".1f",
        "ratio": ".4f",
        "faster": ".1f",
        "peak_mib": ".0f",
        "peer_peak_mib": ".0f",
    }
    forms |= {"ours_gflops": ".0f", "peer_gflops": ".0f", "difference": ".1e"}
    print(f"{row['case']:12}" + "".join(f"{row[key]:>11{form}}" for key, form in forms.items()))
    if row["peer_rows"] < HEIGHT:
        print(f"the peer labelled {row['peer_rows']} of {HEIGHT} rows; its time is that of all, reckoned from them")
    if row["difference"] > 1e-5:
        raise SystemExit(f"the scores differ by {row['difference']:.1e}, more than 1e-5")


def _in_process(side: str, rows: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--run", side, str(rows)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _one_run(side: str, rows: int, threads: int) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if threads:
        torch.set_num_threads(threads)
    cube = torch.randn(BANDS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        run = _ours if side == "ours" else _peer
        label, check, sample, share, passes = run(cube, rows)
        label(warm=True)
        times = []
        for _ in range(passes):
            start = time.perf_counter()
            label()
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with FlopCounterMode(display=False) as counter:
            sample()
        difference = check()
    measured = {
        "seconds": statistics.median(times) * HEIGHT / (rows if side == "peer" else HEIGHT),
        "peak_mib": peak,
        "gflop": counter.get_total_flops() * share / 1e9,
        "difference": difference,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(measured))


Run = tuple[Callable[..., Any], Callable[[], float], Callable[[], Any], float, int]
"""What labels the scene, what checks it, a piece of the work to count, how many such pieces there are, and passes."""


def _ours(cube: Any, _: int) -> Run:  # noqa: ANN401 - a tensor; torch is imported in the process that computes
    import torch

    from cubeloom.models.registry import create_model

    torch.manual_seed(0)
    network = create_model("freenet", in_channels=BANDS, num_classes=CLASSES)
    fast, piece = network.for_inference(), cube[None, :, :96, :96]

    def label(warm: bool = False) -> Any:  # noqa: ANN401
        return fast(piece if warm else cube[None]).argmax(1)

    def check() -> float:
        return float((fast(piece) - network(piece)).abs().max())

    return label, check, lambda: fast(piece), HEIGHT * WIDTH / 96**2, 5


def _peer(cube: Any, rows: int) -> Run:  # noqa: ANN401
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    layers = [nn.Conv2d(BANDS, 32, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(64, 128, 4), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)]
    network = nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)
    mirrored = functional.pad(cube[None], (PATCH // 2,) * 4, mode="reflect")[0].permute(1, 2, 0).contiguous()
    patches = mirrored.unfold(0, PATCH, 1).unfold(1, PATCH, 1)  # (y, x, band, row, col)

    def scores(first: int) -> Any:  # noqa: ANN401
        taken = patches[first : first + ROWS].permute(0, 1, 3, 4, 2).reshape(-1, PATCH, PATCH, BANDS)
        return network(taken.permute(0, 3, 1, 2))

    def label(warm: bool = False) -> Any:  # noqa: ANN401
        return torch.cat([scores(first).argmax(1) for first in range(0, ROWS if warm else rows, ROWS)])

    def check() -> float:
        alone = torch.cat([network(patches[0, at][None]) for at in (0, 100, WIDTH - 1)])
        return float((alone - scores(0)[[0, 100, WIDTH - 1]]).abs().max())

    return label, check, lambda: scores(0), HEIGHT / ROWS, 1


if __name__ == "__main__":
    main()
