"""A wider ESSAformer that begins as what a narrower one has learnt (Net2WiderNet: Chen, Goodfellow, Shlens, ICLR 2016).

Each channel becomes several. What a layer makes of a channel is split among its copies at random, so that they answer
as the one did and yet learn different things. Two places need more than copies:

- norms and means over channels stay what they were, since every channel has as many copies;
- the attention's queries and keys are squared and brought to unit length over the channels: copies would raise the
  attention by the square root of their number. The first copy is the channel; the others are drawn to the mean over
  channels, where a square is 0, and a `_FAINT` part of the way back, for at 0 nothing is learnt. The attention is a
  hundredth too strong by each of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .essaformer import ESSAformer

_FAINT = 0.1
"""Deviation from the mean over channels of a query's or key's further copies, of that of the first."""


def widened(network: ESSAformer, times: int, seed: int = 0) -> ESSAformer:
    """A network `times` as wide with nearly the same answers, to be trained further.

    Args:
        network: which; stays as it is.
        times: copies of each channel.
        seed: of the shares in which weights are split among copies.
    """
    drop = network.blockup.convup.drop.p
    wide = ESSAformer(
        network.bands, times * network.width, network.scale, network.statistics, skip=network.skip, dropout=drop
    )
    random = torch.Generator().manual_seed(seed)
    wide.load_state_dict({key: _wide(key, value, times, random) for key, value in network.state_dict().items()})
    return wide


def _wide(key: str, value: Tensor, times: int, random: torch.Generator) -> Tensor:
    """A tensor of the wider network."""
    layer, _, kind = key.rpartition(".")
    if kind == "seen":
        return value
    if kind in ("scatter", "power"):
        return _means(value, times, square=kind == "power")
    if layer != "conv_last":
        value = _outputs(value, times, _projections if layer.endswith("lnqkv") else _same)
    if value.ndim > 1 and layer != "conv_first":
        beside_image = layer.endswith(("convu.0", "convd.0"))
        value = _inputs(value, 2 if beside_image else 1, times, random)
    return value


def _same(value: Tensor) -> tuple[Tensor, Tensor]:
    """The first copy and the others of channels that are merely repeated, as one block."""
    return value[None], value[None]


def _projections(value: Tensor) -> tuple[Tensor, Tensor]:
    """The same of queries, keys and values, three blocks."""
    first = value.reshape(3, -1, *value.shape[1:])
    mean = first[:2].mean(1, keepdim=True)
    return first, torch.cat((mean + _FAINT * (first[:2] - mean), first[2:]))


def _outputs(value: Tensor, times: int, copies: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Copies of a layer's outputs, block by block."""
    first, other = copies(value)
    return torch.cat((first, *[other] * (times - 1)), 1).flatten(0, 1)


def _inputs(value: Tensor, blocks: int, times: int, random: torch.Generator) -> Tensor:
    """Weights `(out, in, ...)` split among copies of the inputs, block by block."""
    parts = value.reshape(len(value), blocks, 1, -1, *value.shape[2:])
    shares = torch.rand((len(value), blocks, times, *parts.shape[3:]), generator=random)
    split: Tensor = parts * shares / shares.sum(2, keepdim=True)
    return split.flatten(1, 3)


def _means(value: Tensor, times: int, *, square: bool) -> Tensor:
    """The running means of k̂ᵀ v `(visit, C, C)` or k̂² `(visit, C)` over the copies' shares of a square."""
    shares = torch.tensor([1.0] + [_FAINT**2] * (times - 1))
    shares /= shares.sum()
    if square:
        return (shares[:, None].square() * value[:, None]).flatten(1)
    rows = (shares[:, None, None] * value[:, None]).flatten(1, 2)
    return rows.repeat(1, 1, times)
