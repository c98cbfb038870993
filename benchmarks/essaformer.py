"""ESSAformer's forward pass beside the published graph written plainly, the weights and the image being the same.

Run: python benchmarks/essaformer.py [--quick] [--json FILE] [--rounds N] [--threads N]

Ours is `create_model("essaformer_x4").for_inference()`, 128 bands and width 256 as published. The peer is the network
as its paper and its authors' code have it: tokens, the projection to queries, keys and values, the attention in its
linear order, a concatenation and three convolutions; within 10 % of the time of their class. Both in inference mode,
with the same number of threads and the same allocator.

`forward` is an image of 32 x 32 px, `memory` one of 64 x 64. Each run is a process of its own, peer and ours in turn:
once to warm up on a small image, then the image. Seconds are of the processor (user and system), which others on the
machine disturb less than the clock; the ratio is ours over peer, median of the pairs, and `faster` its inverse. Memory
is what the process holds at its peak beyond what it held before the pass, in which ours has its copies of the weights;
the resident set as a whole is printed too (Linux alone keeps these numbers). Outputs must not differ by more than 1e-5
of the largest value; the largest difference is printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BANDS = 128
CASES = {"forward": 32, "memory": 64}
"""Side of each case, px."""
LEAST = {"forward": 1.5, "memory": 2.0}
"""What is asked: so many times as fast, so many times less memory."""
COLUMNS = {
    "ours_s": ("ours s", ".2f"),
    "peer_s": ("peer s", ".2f"),
    "ratio": ("ratio", ".2f"),
    "faster": ("faster", ".2f"),
    "ours_mib": ("ours MiB", ".0f"),
    "peer_mib": ("peer MiB", ".0f"),
    "smaller": ("smaller", ".2f"),
    "peak_mib": ("ours RSS", ".0f"),
    "peer_peak_mib": ("peer RSS", ".0f"),
    "difference": ("difference", ".1e"),
}
"""Of the table: keys of a row, with their heads and forms."""


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of each")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of both; 0 leaves it to torch")
    parser.add_argument("--run", nargs=3, metavar=("SIDE", "CASE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(*arguments.run, arguments.threads)
        return
    print(f"{'case':9}" + "".join(f"{head:>11}" for head, _ in COLUMNS.values()))
    rows = [_case(case, 1 if arguments.quick else arguments.rounds, arguments.threads) for case in CASES]
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def _case(case: str, rounds: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            tuple(_in_process(side, case, Path(folder) / f"{side}.npy", threads) for side in ("peer", "ours"))
            for _ in range(rounds)
        ]
        difference = _difference(Path(folder))
    peer, ours = zip(*pairs, strict=True)
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in pairs)
    row = {
        "case": case,
        "ours_s": statistics.median(run["seconds"] for run in ours),
        "peer_s": statistics.median(run["seconds"] for run in peer),
        "ratio": ratio,
        "faster": 1 / ratio,
        "ours_mib": max(run["mib"] for run in ours),
        "peer_mib": min(run["mib"] for run in peer),
        "smaller": min(a["mib"] / b["mib"] for a, b in pairs),
        "peak_mib": max(run["rss_mib"] for run in ours),
        "peer_peak_mib": min(run["rss_mib"] for run in peer),
        "difference": difference,
        "threads": ours[0]["threads"],
        "rounds": rounds,
    }
    print(f"{case:9}" + "".join(f"{row[key]:>11{form}}" for key, (_, form) in COLUMNS.items()), flush=True)
    if difference > 1e-5:
        raise SystemExit(f"{case}: the outputs differ by {difference:.1e} of the largest value, more than 1e-5")
    if row["faster" if case == "forward" else "smaller"] < LEAST[case]:
        raise SystemExit(f"{case}: less than {LEAST[case]} times")
    return row


def _in_process(side: str, case: str, out: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--run", side, case, str(out)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _difference(folder: Path) -> float:
    import numpy as np

    ours, peer = np.load(folder / "ours.npy"), np.load(folder / "peer.npy")
    return float(np.abs(ours - peer).max() / np.abs(peer).max())


def _one_run(side: str, case: str, out: str, threads: int) -> None:
    import numpy as np
    import torch

    from cubeloom.models.registry import create_model

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = create_model("essaformer_x4", bands=BANDS)
    for name, values in network.state_dict().items():
        if values.ndim == 4:
            values.mul_(1.6)  # else the attention is lost beside the biases
        elif name.endswith("norm.weight"):
            values.copy_(torch.rand_like(values) + 0.5)
    forward: Callable[[Any], Any] = network.for_inference() if side == "ours" else _peer(network)
    del network
    image = torch.rand(1, BANDS, CASES[case], CASES[case], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        forward(image[..., :8, :8])
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        before, start = _kib("VmRSS") / 1024, time.process_time()
        result = forward(image)
        seconds, peak = time.process_time() - start, _kib("VmHWM") / 1024
    np.save(out, result.numpy())
    mib = {"mib": peak - before, "rss_mib": peak}
    print(json.dumps({"seconds": seconds, **mib, "threads": torch.get_num_threads()}))


def _kib(name: str) -> int:
    """A number that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _peer(network: Any) -> Callable[[Any], Any]:  # noqa: ANN401
    """The forward pass over a network's weights, as the paper and its authors' code have it."""
    import torch
    from torch.nn import functional

    state = {key: value.detach() for key, value in network.state_dict().items()}

    def conv(x: Any, name: str) -> Any:  # noqa: ANN401
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(x: Any, name: str) -> Any:  # noqa: ANN401
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def attention(x: Any, name: str) -> Any:  # noqa: ANN401
        query, key, value = linear(x, f"{name}.lnqkv").split(x.shape[2], 2)
        query = query - query.mean(2, keepdim=True)
        key = key - key.mean(2, keepdim=True)
        query, key = query.pow(2), key.pow(2)
        query_sum, key_sum = query.sum(2, keepdim=True), key.sum(2, keepdim=True)
        key = functional.normalize(key / (key_sum + 1e-7), dim=-2)
        query = functional.normalize(query / (query_sum + 1e-7), dim=-1)
        attended = query @ (key.transpose(-2, -1) @ value) / x.shape[1] ** 0.5
        return linear(value + attended, f"{name}.ln")

    def refine(x: Any, name: str, layers: str) -> Any:  # noqa: ANN401
        norm = state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = attention(functional.layer_norm(tokens, tokens.shape[2:], *norm), f"{name}.attn")
        y = torch.cat((tokens.transpose(1, 2).view(x.shape), x), dim=1)
        y = functional.leaky_relu(conv(y, f"{name}.{layers}.0"), 0.2, inplace=True)
        y = functional.leaky_relu(conv(y, f"{name}.{layers}.3"), 0.2, inplace=True)
        return conv(y, f"{name}.{layers}.6") + x

    def up(x: Any) -> Any:  # noqa: ANN401
        for index in (0, 2):
            x = functional.pixel_shuffle(conv(x, f"blockup.convupsample.{index}"), 2)
        return x

    def down(x: Any) -> Any:  # noqa: ANN401
        for index in (0, 2):
            x = functional.pixel_unshuffle(conv(x, f"blockup.convdownsample.{index}"), 2)
        return x

    def block(x: Any) -> Any:  # noqa: ANN401
        fine = refine(up(x), "blockup.convup", "convu")
        coarse = refine(down(fine) + x, "blockup.convdown", "convd")
        finer = refine(up(coarse) + fine, "blockup.convup", "convu")
        again = refine(down(finer) + coarse, "blockup.convdown", "convd")
        return refine(up(again) + finer, "blockup.convup", "convu")

    return lambda x: conv(block(conv(x, "conv_first")), "conv_last")


if __name__ == "__main__":
    main()
