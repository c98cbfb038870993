"""Case `croma_base`: the joint tokens of CROMA beside the published graph.

Of one image of 120 px, and as `croma_base_240` of 240 px by the same network: ours in its form for inference, the peer
the published graph written plainly over the same weights: products by `linear`, attention by `einsum`, bias and
`softmax` one after the other; its bias is made beforehand, without the authors' loops. It took 0.99 times the CPU
seconds of the authors' class (120 px, medians of ten). Weights are random. Both run in one process, in turn, on as many
threads as torch takes by itself, in seconds of the clock; and once more on one thread, in CPU seconds (`_1`). The ratio
is ours over peer, median of the rounds, and `faster` its inverse. No more than 1e-5 of the largest token may lie
between the two, which the benchmark checks; `apart` is the largest share of that. On one thread nine tenths of our time
at 120 px are products, 83 GFLOP at 107 GFLOP/s, where a core of the AMD EPYC (Zen 4) that this was measured on can do
no more than 116: the gain is smallest there, and shows in the median of many rounds (15) alone.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from _rows import compared

if TYPE_CHECKING:
    from torch import Tensor

SIZES = (120, 240)
"""Sides of the images, px; the short case has the first."""
HEADS, PATCH = 16, 8
WANTED = 1.3
"""How many times as fast ours is to be."""


def measured(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each size of image and number of threads."""
    import torch

    from cubeloom.models.registry import create_model

    torch.manual_seed(0)
    network = create_model("croma_base")
    rows = []
    for threads, clock in ((torch.get_num_threads(), time.perf_counter), (1, time.process_time)):
        torch.set_num_threads(threads)
        fast = network.for_inference()
        for side in SIZES[:1] if quick else SIZES:
            case = ("croma_base" if side == SIZES[0] else f"croma_base_{side}") + ("_1" if threads == 1 else "")
            plain = _PlainCroma(network.state_dict(), side // PATCH)
            radar, optical = torch.rand(1, 2, side, side), torch.rand(1, 12, side, side)
            calls = (
                (lambda r=radar, o=optical, f=fast: f.encode(r, o).joint),
                (lambda r=radar, o=optical, p=plain: p(r, o)),
            )
            with torch.inference_mode():
                for call in calls:
                    call()
                row, made, theirs = compared(case, *calls, clock, rounds)
                apart = (made - theirs).abs().max() / (1e-5 * theirs.abs().max())
            rows.append(row | {"threads": threads, "wanted": WANTED, "apart": float(apart)})
    return rows


class _PlainCroma:
    """The published graph from a state dict: every product, sum and softmax by itself."""

    def __init__(self, state: "dict[str, Tensor]", cells: int) -> None:
        import torch

        self.state = state
        place = torch.arange(cells).repeat_interleave(cells), torch.arange(cells).repeat(cells)
        apart = sum((one[:, None] - one).square() for one in place).sqrt()
        self.bias = -(2 ** (-(torch.arange(HEADS) + 1) / 2))[:, None, None] * apart

    def __call__(self, radar: "Tensor", optical: "Tensor") -> "Tensor":
        of_radar, of_optical = self._encoded(radar, "s1_encoder"), self._encoded(optical, "s2_encoder")
        return self._blocks(of_radar, "joint_encoder.", of_optical)

    def _encoded(self, image: "Tensor", part: str) -> "Tensor":
        n, channels, height, width = image.shape
        cut = image.reshape(n, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
        return self._blocks(self._linear(cut.flatten(3).flatten(1, 2), f"{part}.linear_input"), f"{part}.transformer.")

    def _blocks(self, x: "Tensor", part: str, context: "Tensor | None" = None) -> "Tensor":
        import torch.nn.functional as nn

        for at in range(sum(key.startswith(part) and key.endswith(".0.to_qkv.weight") for key in self.state)):
            first, second, third = (f"{part}layers.{at}.{place}" for place in range(3))
            x = self._attended(self._linear(self._norm(x, first), f"{first}.to_qkv").chunk(3, -1), first) + x
            if context is not None:
                seen = self._norm(context, second)
                streams = {"to_q": self._norm(x, second), "to_k": seen, "to_v": seen}
                x = self._attended([self._linear(one, f"{second}.{to}") for to, one in streams.items()], second) + x
            last = second if context is None else third
            wide = nn.gelu(self._linear(self._norm(x, last), f"{last}.net.0"))
            x = self._linear(wide, f"{last}.net.3") + x
        return self._norm(x, part, "norm_out")

    def _attended(self, streams: "Iterable[Tensor]", layer: str) -> "Tensor":
        import torch

        q, k, v = (one.unflatten(-1, (HEADS, -1)).permute(0, 2, 1, 3) for one in streams)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        scores = scores + self.bias
        seen = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        return self._linear(seen.permute(0, 2, 1, 3).flatten(2), f"{layer}.to_out")

    def _linear(self, x: "Tensor", layer: str) -> "Tensor":
        import torch.nn.functional as nn

        return nn.linear(x, self.state[f"{layer}.weight"], self.state.get(f"{layer}.bias"))

    def _norm(self, x: "Tensor", part: str, name: str = ".input_norm") -> "Tensor":
        import torch.nn.functional as nn

        weight, bias = (self.state[f"{part}{name}.{one}"] for one in ("weight", "bias"))
        return nn.layer_norm(x, x.shape[-1:], weight, bias)
