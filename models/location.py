"""Where on Earth a scene lies, as a prior: spherical harmonics and a network of sines.

After Russwurm, Klemmer, Rolf, Zbinden and Tuia ("Geographic location encoding with spherical harmonics and sinusoidal
representation networks", ICLR 2024, arXiv 2310.06743), key by key. Harmonics come from a recurrence of normalised
Legendre functions in float64, which is stable at every degree; the published closed form is not beyond some thirty.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from cubeloom.errors import ModelError

from .network import Network
from .registry import create_model, model_card, register_model

SCORING = "spectral_segmenter"
"""The network that scores where none is named."""
FIRST_FREQUENCY = 30.0
"""Factor on what the first layer gives before its sine (Sitzmann et al. 2020, arXiv 2006.09661); later ones have 1."""


def legendre(cosine: Tensor, sine: Tensor, degrees: int) -> Tensor:
    """Normalised associated Legendre functions with the Condon-Shortley sign, of degrees 0 to `degrees` - 1.

    N_lm P_lm(cos theta) with N_lm = sqrt((2 l + 1) (l - m)! / (4 pi (l + m)!)), by the three-term recurrence in l of
    the normalised functions (Holmes and Featherstone, J. Geodesy 76, 2002, eq. 11).

    Args:
        cosine: of theta, `(n,)` float64.
        sine: of theta, `(n,)`, not negative; from the cosine it would lose digits near the poles.
        degrees: L, at least 1.

    Returns:
        `(n, L, L)`, by degree l and order m; 0 where m > l.
    """
    made = cosine.new_zeros(*cosine.shape, degrees, degrees)
    made[:, 0, 0] = math.sqrt(1 / (4 * math.pi))
    orders = torch.arange(degrees, dtype=cosine.dtype, device=cosine.device)
    for degree in range(1, degrees):
        before = made[:, degree - 1, degree - 1]
        made[:, degree, degree] = -math.sqrt((2 * degree + 1) / (2 * degree)) * sine * before
        made[:, degree, degree - 1] = math.sqrt(2 * degree + 1) * cosine * before
        if degree > 1:
            square = orders[: degree - 1] ** 2
            grow = torch.sqrt((4 * degree**2 - 1) / (degree**2 - square))
            lose = torch.sqrt(((degree - 1) ** 2 - square) / (4 * (degree - 1) ** 2 - 1))
            last, one_more = made[:, degree - 1, : degree - 1], made[:, degree - 2, : degree - 1]
            made[:, degree, : degree - 1] = grow * (cosine[:, None] * last - lose * one_more)
    return made


def spherical_harmonics(lonlat: Tensor, degrees: int) -> Tensor:
    """Real spherical harmonics of degrees 0 to L - 1, `(n, L²)` float64.

    Degree after degree, each with orders m = -l to l: sqrt 2 sin(|m| phi) below zero, sqrt 2 cos(m phi) above. As the
    authors have it, phi is longitude + 180° and theta latitude + 90°, so theta is 0 at the south pole.

    Args:
        lonlat: longitude and latitude, degrees, `(n, 2)`; float64, or float32 to a metre or so.
        degrees: L.
    """
    longitude, latitude = torch.deg2rad(lonlat.double()).unbind(-1)
    functions = legendre(-torch.sin(latitude), torch.cos(latitude).clamp(min=0), degrees)
    orders = torch.arange(degrees, device=lonlat.device)
    around = orders * (longitude + math.pi)[:, None]
    both = math.sqrt(2) * torch.stack([torch.sin(around), torch.cos(around)])[:, :, None] * functions
    parts = []
    for degree in range(degrees):
        below, above = both[:, :, degree, 1 : degree + 1]
        parts += [below.flip(-1), functions[:, degree, :1], above]
    return torch.cat(parts, -1)


class Sine(nn.Linear):
    """A linear layer and the sine of what it gives, times a frequency; no sine where that is 0."""

    def __init__(self, inputs: int, outputs: int, frequency: float, first: bool = False, dropout: float = 0.0) -> None:
        super().__init__(inputs, outputs)
        self.frequency = frequency
        self.dropout = nn.Dropout(dropout)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / (frequency or 1.0)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n, outputs)."""
        y: Tensor = self.dropout(super().forward(x))
        return torch.sin(self.frequency * y) if self.frequency else y


class SirenNet(nn.Module):
    """A network of sines (Sitzmann et al. 2020): `layers` of `hidden` features, then a linear one."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        self.layers = nn.ModuleList(
            Sine(before, hidden, 1.0 if number else FIRST_FREQUENCY, not number, dropout)
            for number, before in enumerate(sizes[:-1])
        )
        self.last_layer = Sine(sizes[-1], outputs, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n, outputs)."""
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.last_layer(x)
        return y


class LocationEncoder(nn.Module):
    """An embedding of a place.

    Args:
        outputs: its size; with the number of classes its numbers are scores, a prior by themselves.
        degrees: L of the harmonics: details of some 180° / L.
        hidden: features of a layer.
        layers: of sines.
        dropout: of what goes into a sine.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, outputs: int, degrees: int = 10, hidden: int = 64, layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if min(outputs, degrees, hidden, layers) < 1:
            raise ValueError("outputs, degrees, hidden and layers are at least 1")
        self.degrees = degrees
        self.neural_network = SirenNet(degrees**2, hidden, outputs, layers, dropout)

    def forward(self, lonlat: Tensor) -> Tensor:
        """Longitude and latitude, degrees, (n, 2) → (n, outputs)."""
        network = self.neural_network
        y: Tensor = network(spherical_harmonics(lonlat, self.degrees).to(network.last_layer.weight.dtype))
        return y


class LocatedHead(nn.Module):
    """Any head that also knows where its tiles lie: the embedding of the place is added to what goes into it.

    At first it adds nothing, so a trained head keeps what it knows. With `nn.Identity()` for a head behind scores, and
    as many outputs as classes, the scores of image and place are summed, as the authors do.

    Args:
        head: takes features (N, C) or (N, C, h, w).
        encoder: with C outputs.
    """

    def __init__(self, head: nn.Module, encoder: LocationEncoder) -> None:
        super().__init__()
        self.head = head
        self.encoder = encoder
        last = encoder.neural_network.last_layer
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, lonlat: Tensor | None = None) -> Tensor:
        """What the head gives for features (N, C, ...) of tiles centred at `lonlat` (N, 2), degrees; None: anywhere."""
        if lonlat is not None:
            place = self.encoder(lonlat)
            features = features + place.reshape(*place.shape, *[1] * (features.ndim - 2))
        y: Tensor = self.head(features)
        return y


class Located(Network):
    """A network that scores classes, plus what the place alone says of them; see `LocatedHead`.

    Args:
        network: gives scores (N, K) or (N, K, H, W).
        classes: K.
        degrees: of the harmonics, see `LocationEncoder`.
        hidden: features of a layer of sines.
    """

    def __init__(self, network: Network, classes: int, degrees: int = 10, hidden: int = 64) -> None:
        super().__init__()
        self.network = network
        self.prior = LocatedHead(nn.Identity(), LocationEncoder(classes, degrees, hidden))

    def forward(self, x: Tensor, lonlat: Tensor | None = None) -> Tensor:
        """Scores of images (N, D, H, W) whose middles lie at `lonlat` (N, 2), degrees; None: anywhere."""
        scores: Tensor = self.prior(self.network(x), lonlat)
        return scores

    @property
    def encoder(self) -> nn.Module:
        """The backbone: part of the network, or the network."""
        encoder: nn.Module = getattr(self.network, "encoder", self.network)
        return encoder

    @property
    def of_batch(self) -> bool:
        """Whether the network's scores are."""
        return self.network.of_batch

    def pair_bytes(self, height: int, width: int) -> int:
        """Those of the network."""
        return self.network.pair_bytes(height, width)

    def for_inference(self) -> "Located":
        """The same with the network's form for inference, without gradients."""
        made = deepcopy(self).eval().requires_grad_(False)
        made.network = cast("Network", made.network.for_inference())
        return made


def _card_fields(
    network: str = SCORING, network_settings: Mapping[str, Any] | None = None, **_: object
) -> Mapping[str, Any]:
    """Those of the network, and that its answer depends on the place."""
    card = model_card(network, **network_settings or {})
    of_weights = {"name", "family", "tag", "settings", "sha256", "licence", "training", "metrics", "log"}
    return {
        **{name: getattr(card, name) for name in type(card).model_fields if name not in of_weights},
        "located": True,
    }


@register_model("located", defaults=_card_fields)
def located(
    network: str = SCORING,
    network_settings: Mapping[str, Any] | None = None,
    degrees: int = 10,
    hidden: int = 64,
) -> Located:
    """A prior by place beside any network that tells classes apart.

    Args:
        network: a family whose settings have `num_classes`.
        network_settings: its settings.
        degrees: of the harmonics, see `LocationEncoder`.
        hidden: features of a layer of sines.

    Raises:
        ModelError: there is no such network, or it has no classes.
    """
    settings = {"num_classes": 2, **(network_settings or {})} if network == SCORING else dict(network_settings or {})
    classes = settings.get("num_classes", 0)
    if "." in network or not isinstance(classes, int) or classes < 1:
        raise ModelError(
            f"located: network {network!r} with num_classes {classes}; name a family, and its num_classes among "
            "network_settings"
        )
    return Located(create_model(network, None, **settings), classes, degrees, hidden)
