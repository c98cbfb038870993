"""The spectral adapter beside its plain form of three-dimensional convolutions, weights and cube being the same.

Run: python benchmarks/adapter.py [--quick] [--json FILE] [--rounds N] [--threads N]

adapter_forward   the adapter alone in inference mode: `for_inference()`
adapter_backward  the adapter alone while training: forward and backward, gradients of all weights
vit_s             `spectral_vit_small` to its embedding, in inference mode: `for_inference()`

The cube has the 202 bands of EnMAP and 128 × 128 px. The peer runs the same layers as the authors' class does: Conv3d,
BatchNorm3d and ReLU in turn; of the transformer behind it both use timm's. Both have the same number of threads and the
same allocator: its environment variables reach both, and as the peer makes larger arrays, they matter.

Each run is a process of its own, peer and ours in turn: once to warm up, then the median of some passes. The ratio is
ours over peer, median of the pairs. The outputs must not differ by more than 1e-5; the largest difference is printed.
Beside it that of the gradients, over the largest of each weight: a rectifier near zero may fall to either side.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BANDS, SIDE = 202, 128
CASES = {"adapter_forward": 5, "adapter_backward": 5, "vit_s": 3}
"""Passes of each run that are timed."""
CANCELLED = ("0.bias", "3.bias", "6.bias")
COLUMNS = {
    "ours_s": ("ours s", ".3f"),
    "peer_s": ("peer s", ".3f"),
    "ratio": ("ratio", ".2f"),
    "peak_mib": ("ours MiB", ".0f"),
    "peer_peak_mib": ("peer MiB", ".0f"),
    "difference": ("difference", ".1e"),
    "gradients": ("gradients", ".1e"),
}


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round; under a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case")
    parser.add_argument("--threads", type=int, default=0, help="of both; 0 leaves it to torch")
    parser.add_argument("--run", nargs=3, metavar=("SIDE", "CASE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        side, case, out = arguments.run
        _one_run(side, case, out, arguments.threads)
        return
    print(f"{'case':18}" + "".join(f"{title:>11}" for title, _ in COLUMNS.values()))
    rows = [_case(case, 1 if arguments.quick else arguments.rounds, arguments.threads) for case in CASES]
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def _case(case: str, rounds: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            tuple(_in_process(side, case, Path(folder) / f"{side}.npz", threads) for side in ("peer", "ours"))
            for _ in range(rounds)
        ]
        differences = _differences(Path(folder))
    peer, ours = zip(*pairs, strict=True)
    row = {
        "case": case,
        "ours_s": statistics.median(run["seconds"] for run in ours),
        "peer_s": statistics.median(run["seconds"] for run in peer),
        "ratio": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs),
        "peak_mib": max(run["peak_mib"] for run in ours),
        "peer_peak_mib": max(run["peak_mib"] for run in peer),
        "difference": differences.pop("output"),
        "gradients": max(differences.values(), default=0.0),
        "threads": ours[0]["threads"],
        "rounds": rounds,
    }
    print(f"{case:18}" + "".join(f"{row[key]:>11{form}}" for key, (_, form) in COLUMNS.items()), flush=True)
    if row["difference"] > 1e-5:
        raise SystemExit(f"{case}: the outputs differ by {row['difference']:.1e}, more than 1e-5")
    return row


def _in_process(side: str, case: str, out: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--run", side, case, str(out)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _differences(folder: Path) -> dict[str, float]:
    """The largest of each array that the two sides wrote; of gradients over the largest value."""
    import numpy as np

    found = {}
    with np.load(folder / "ours.npz") as ours, np.load(folder / "peer.npz") as peer:
        for name in peer:
            scale = 1 if name == "output" else float(np.abs(peer[name]).max())
            found[name] = float(np.abs(ours[name] - peer[name]).max()) / scale
    return found


def _one_run(side: str, case: str, out: str, threads: int) -> None:
    import numpy as np
    import torch

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    once = _training(side) if case == "adapter_backward" else _inference(side, case)
    result = once()
    times = []
    for _ in range(CASES[case]):
        start = time.perf_counter()
        result = once()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.savez(out, **{name: value.detach().numpy() for name, value in result.items()})
    print(json.dumps({"seconds": statistics.median(times), "peak_mib": peak, "threads": torch.get_num_threads()}))


def _inference(side: str, case: str) -> Callable[[], dict[str, Any]]:
    import torch

    from cubeloom.models.registry import create_model

    network: Any = create_model("spectral_vit_small")
    _enliven(network.spectral_adapter)
    cube = torch.randn(1, BANDS, SIDE, SIDE)
    adapter = network.for_inference().spectral_adapter if side == "ours" else _Plain(network.spectral_adapter)
    behind = network.backbone if case == "vit_s" else torch.nn.Identity()

    def once() -> dict[str, Any]:
        with torch.inference_mode():
            return {"output": behind(adapter(cube))}

    return once


def _training(side: str) -> Callable[[], dict[str, Any]]:
    import torch

    from cubeloom.models.spectral_adapter import SpectralAdapter

    adapter = SpectralAdapter()
    _enliven(adapter)
    cube = torch.randn(1, BANDS, SIDE, SIDE)
    weights = torch.randn(1, 128, SIDE, SIDE)
    forward = adapter if side == "ours" else _Plain(adapter)

    def once() -> dict[str, Any]:
        adapter.zero_grad()
        output = forward(cube)
        output.backward(weights)
        # Batch statistics cancel the biases of convolutions: their gradients are rounding and say nothing.
        named = {name: value.grad for name, value in adapter.named_parameters()}
        return {"output": output, **{name: value for name, value in named.items() if name not in CANCELLED}}

    return once


class _Plain:
    """The adapter's layers one after the other, as its authors' class has them."""

    def __init__(self, adapter: Any) -> None:  # noqa: ANN401
        self.adapter = adapter

    def __call__(self, x: Any) -> Any:  # noqa: ANN401
        x = x.unsqueeze(1)
        for layer in self.adapter:
            x = layer(x)
        return x.squeeze(2)


def _enliven(adapter: Any) -> None:  # noqa: ANN401
    """Statistics and factors as training might leave them, so that no term is zero or one."""
    import torch

    for name, values in adapter.state_dict().items():
        if name.endswith("running_var"):
            values.copy_(torch.rand_like(values) + 0.5)
        elif values.is_floating_point() and values.ndim == 1:
            values.add_(0.2 * torch.randn_like(values))


if __name__ == "__main__":
    main()
