"""HSDT's forward pass beside a plain one with three-dimensional convolutions, the weights and the cube being the same.

Run: python benchmarks/hsdt.py [--quick] [--json FILE] [--rounds N] [--threads N]

Ours is `create_model(family).for_inference()`. The peer is the network as its paper writes it, layer by layer on
(N, C, D, H, W) arrays, which is how its authors' code runs: within 10 % of their class. Both in inference mode, with
the same number of threads and the same allocator (its environment variables reach both).

Each run is a process of its own, peer and ours in turn: once to warm up, then the median of some passes. The ratio is
ours over peer, median of the pairs. GFLOP/s are the peer's multiplications and additions over the time of each, so that
they compare; ours does with fewer. The outputs must not differ by more than 1e-5; the largest difference is printed.
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

BANDS = 31
CASES = {"hsdt_s_128": 128, "hsdt_m_128": 128, "hsdt_s_512": 512, "hsdt_m_512": 512}
"""Side of each case, px; the short run takes those of 128."""


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128 px only, one round; under a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of each case of 128 px; of 512 px a third of them"
    )
    parser.add_argument("--threads", type=int, default=0, help="of both; 0 leaves it to torch")
    parser.add_argument("--run", nargs=3, metavar=("SIDE", "CASE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(*arguments.run, arguments.threads)
        return
    columns = ("ours s", "peer s", "ratio", "ours MiB", "peer MiB", "GFLOP/s", "peer's", "difference")
    print(f"{'case':12}" + "".join(f"{column:>11}" for column in columns))
    rows = []
    for case, side in CASES.items():
        if arguments.quick and side > 128:
            continue
        rounds = 1 if arguments.quick else arguments.rounds if side == 128 else max(1, arguments.rounds // 3)
        rows.append(_case(case, rounds, arguments.threads))
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
    seconds = {
        name: statistics.median(run["seconds"] for run in runs) for name, runs in (("peer", peer), ("ours", ours))
    }
    row = {
        "case": case,
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs),
        "peak_mib": max(run["peak_mib"] for run in ours),
        "peer_peak_mib": max(run["peak_mib"] for run in peer),
        "ours_gflops": peer[0]["gflop"] / seconds["ours"],
        "peer_gflops": peer[0]["gflop"] / seconds["peer"],
        "difference": difference,
        "threads": ours[0]["threads"],
        "rounds": rounds,
    }
    widths = {"ours_s": ".3f", "peer_s": ".3f", "ratio": ".2f", "peak_mib": ".0f", "peer_peak_mib": ".0f"}
    widths |= {"ours_gflops": ".0f", "peer_gflops": ".0f", "difference": ".1e"}
    print(f"{case:12}" + "".join(f"{row[key]:>11{form}}" for key, form in widths.items()), flush=True)
    if difference > 1e-5:
        raise SystemExit(f"{case}: the outputs differ by {difference:.1e}, more than 1e-5")
    return row


def _in_process(side: str, case: str, out: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--run", side, case, str(out)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _difference(folder: Path) -> float:
    import numpy as np

    ours, peer = np.load(folder / "ours.npy"), np.load(folder / "peer.npy")
    return float(np.abs(ours - peer).max())


def _one_run(side: str, case: str, out: str, threads: int) -> None:
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cubeloom.models.registry import create_model

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = create_model(case.rpartition("_")[0])
    _enliven(network)
    forward: Callable[[Any], Any] = network.for_inference() if side == "ours" else _peer(network)
    px = CASES[case]
    cube = torch.rand(1, 1, BANDS, px, px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        forward(cube if px <= 128 else cube[..., :128, :128])
        times = []
        for _ in range(3 if px <= 128 else 1):
            start = time.perf_counter()
            result = forward(cube)
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with FlopCounterMode(display=False) as counter:
            _peer(network)(cube[..., :16, :16])
    np.save(out, result.numpy())
    gflop = counter.get_total_flops() * (px / 16) ** 2 / 1e9
    measured = {
        "seconds": statistics.median(times),
        "peak_mib": peak,
        "gflop": gflop,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(measured))


def _enliven(network: Any) -> None:  # noqa: ANN401
    """Statistics and factors as training might leave them, so that no term is zero or one."""
    import torch

    for name, values in network.state_dict().items():
        if name.endswith(("bn.weight", "bn.running_var")):
            values.copy_(torch.rand_like(values) + 0.5)
        elif name.endswith(("bn.bias", "bn.running_mean")):
            values.copy_(0.2 * torch.randn_like(values))
        elif ".attn." in name and values.ndim == 2:
            values.copy_(torch.randn_like(values) * (2 * values.shape[1]) ** -0.5)


def _peer(network: Any) -> Callable[[Any], Any]:  # noqa: ANN401
    """The forward pass over a network's weights, as the paper writes it."""
    import torch
    from torch.nn import functional

    state = {key: value.detach() for key, value in network.state_dict().items()}

    def block(x: Any, prefix: str) -> Any:  # noqa: ANN401
        x = dense(x, prefix) if f"{prefix}.conv.weight" in state else separable(x, prefix)
        names = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(state[f"{prefix}.bn.{name}"] for name in names))
        return feed_forward(attention(x, f"{prefix}.attn.attn"), f"{prefix}.attn.ffn")

    def dense(x: Any, prefix: str) -> Any:  # noqa: ANN401
        weight = state[f"{prefix}.conv.weight"]
        if weight.shape[0] > weight.shape[1]:
            return functional.conv3d(x, weight, padding=1, stride=(1, 2, 2))
        x = functional.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
        return functional.conv3d(x, weight, padding=1)

    def separable(x: Any, prefix: str) -> Any:  # noqa: ANN401
        y = functional.conv3d(x, state[f"{prefix}.conv.dw_conv.0.weight"], padding=(0, 1, 1))
        y = functional.leaky_relu(y, 0.01)
        y = functional.conv3d(y, state[f"{prefix}.conv.dw_conv.2.weight"], padding=(0, 1, 1))
        y = functional.leaky_relu(y, 0.01)
        return y + functional.conv3d(x, state[f"{prefix}.conv.pw_conv.weight"], padding=(1, 0, 0))

    def attention(x: Any, prefix: str) -> Any:  # noqa: ANN401
        means = x.flatten(3).mean(-1).transpose(1, 2)
        logits = functional.linear(means, state[f"{prefix}.attn_proj.weight"], state[f"{prefix}.attn_proj.bias"])
        y = functional.linear(x.permute(0, 3, 4, 2, 1), state[f"{prefix}.value_proj.weight"])
        y = torch.matmul(logits.softmax(-1)[:, None, None], y)
        return functional.linear(y, state[f"{prefix}.fc.weight"]).permute(0, 4, 3, 1, 2).add_(x)

    def feed_forward(x: Any, prefix: str) -> Any:  # noqa: ANN401
        x = x.permute(0, 2, 3, 4, 1)
        w_1, w_2, w_3 = ((state[f"{prefix}.w_{k}.weight"], state[f"{prefix}.w_{k}.bias"]) for k in (1, 2, 3))
        y = functional.linear(functional.gelu(functional.linear(x, *w_1)), *w_2)
        value, gate = functional.linear(x, *w_3).chunk(2, -1)
        return (y + value * torch.sigmoid(gate)).permute(0, 4, 1, 2, 3)

    layers = len({key.split(".")[2] for key in state if key.startswith("encoder.")})

    def forward(x: Any) -> Any:  # noqa: ANN401
        skips = [block(x, "head")]
        for index in range(layers):
            skips.append(block(skips[-1], f"encoder.layers.{index}"))
        y = block(skips.pop(), "decoder.layers.0")
        for index in range(1, layers):
            y = block(y + skips.pop(), f"decoder.layers.{index}")
        return functional.conv3d(y + skips.pop(), state["tail.weight"], state["tail.bias"], padding=1) + x

    return forward


if __name__ == "__main__":
    main()
