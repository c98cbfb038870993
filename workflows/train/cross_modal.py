"""CROMA's pretraining: contrast of two sensors, and reconstruction of both from what few patches of each tell.

Fuller, Millard and Green, NeurIPS 2023 (arXiv 2311.00566), section 3, and the authors' `pretrain_croma.py`. One thing
differs: they bias the joint encoder's attention of radar patches to each other by distances to optical patches, which
other places are than those attended to; here it is biased by their own.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card
from cubeloom.models.croma import CHANNELS, Croma
from cubeloom.models.croma_layers import PATCH, Encoder, alibi

from .mae import draw_tokens, filled, positions, taken, targets
from .pretrain_module import PretrainModule
from .pretrain_recipe import CrossModal, PretrainRecipe


class CrossModalModule(PretrainModule):
    """Encoders that see few patches of each sensor, other ones of each, and a decoder that fills in the others of both.

    Args:
        network: CROMA's three encoders.
        recipe: how.
        card: of the weights to come.
        method: the recipe's part on this.

    Raises:
        ConfigError: the network is another, or the views are not of whole patches.
    """

    network: Croma

    def __init__(self, network: Any, recipe: PretrainRecipe, card: Card, method: CrossModal) -> None:  # noqa: ANN401
        if not isinstance(network, Croma) or network.modality != "joint":
            raise ConfigError(f"method croma is for croma_* of both sensors (modality joint); found {recipe.model}")
        if recipe.size % PATCH:
            raise ConfigError(f"size {recipe.size} is no multiple of the patches' {PATCH} px")
        super().__init__(network, recipe, card)
        self.method, self.side = method, recipe.size // PATCH
        inner, width = network.width, method.decoder_width
        self.projections = nn.ModuleDict({name: nn.Linear(inner, inner) for name in ("radar", "optical")})
        self.sharpness = nn.Parameter(torch.tensor(math.log(1 / method.temperature)))
        self.enter = nn.Linear(inner, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("places", positions(self.side, width)[:, 1:], persistent=False)
        self.decoder = nn.Sequential(*(_block(width, method.decoder_heads) for _ in range(method.decoder_depth)))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PATCH**2 * CHANNELS["joint"]))
        nn.init.normal_(self.mask_token, std=0.02)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Contrast and both errors of reconstruction, of views `(1, N, 14, H, W)`."""
        radar, optical = self.network.images(batch[0])
        assert radar is not None and optical is not None  # noqa: PT018 - of a joint network
        count, places, ratio = len(radar), self.side**2, self.method.mask_ratio
        of_radar, of_optical = (draw_tokens(count, places, ratio, radar.device) for _ in range(2))
        return self.loss(radar, optical, of_radar, of_optical)

    def loss(
        self, radar: Tensor, optical: Tensor, radar_places: tuple[Tensor, Tensor], optical_places: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The three losses summed.

        Args:
            radar: (N, 2, H, W), scaled.
            optical: (N, 12, H, W), scaled.
            radar_places: indices of its patches that are seen, and of those that are hidden, (N, n) each.
            optical_places: the same of the other.
        """
        network = self.network
        (seen_radar, hidden_radar), (seen_optical, hidden_optical) = radar_places, optical_places
        bias = alibi(self.side, self.side, radar.device, radar.dtype)
        own = chosen(bias, seen_radar, seen_radar)
        radar_tokens = _visible(network.s1_encoder, radar, seen_radar, own)
        optical_tokens = _visible(network.s2_encoder, optical, seen_optical, chosen(bias, seen_optical, seen_optical))
        across = chosen(bias, seen_radar, seen_optical)
        joint = network.joint_encoder(radar_tokens, own, optical_tokens, across)
        made, wanted = self.decode(joint, seen_radar), targets(torch.cat([optical, radar], 1), PATCH)
        border = PATCH**2 * CHANNELS["optical"]
        of_optics, of_radar = (
            functional.mse_loss(taken(made[..., part], hidden), taken(wanted[..., part], hidden))
            for part, hidden in ((slice(border), hidden_optical), (slice(border, None), hidden_radar))
        )
        return self.contrast(radar_tokens, optical_tokens) + of_optics + of_radar

    def contrast(self, radar_tokens: Tensor, optical_tokens: Tensor) -> Tensor:
        """InfoNCE of the two sensors of each place against all others of the batch, either way."""
        summaries = {
            "radar": self.network.s1_GAP_FFN(radar_tokens.mean(1)),
            "optical": self.network.s2_GAP_FFN(optical_tokens.mean(1)),
        }
        radar, optical = (
            functional.normalize(self.projections[name](one).float(), dim=1) for name, one in summaries.items()
        )
        likeness = self.sharpness.exp() * radar @ optical.t()
        own = torch.arange(len(likeness), device=likeness.device)
        return (functional.cross_entropy(likeness, own) + functional.cross_entropy(likeness.t(), own)) / 2

    def decode(self, joint: Tensor, seen: Tensor) -> Tensor:
        """What the decoder makes of every patch of both sensors, (N, T, 64 · 14), from tokens at the radar's places."""
        whole = filled(self.enter(joint), seen, self.mask_token, self.side**2)
        return self.leave(self.decoder(whole + self.get_buffer("places")))  # type: ignore[no-any-return]


def chosen(bias: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The bias (1, heads, T, T) between places, (N, n) and (N, m): (N, heads, n, m)."""
    return bias[0][:, queries[:, :, None], keys[:, None, :]].transpose(0, 1)


def _block(width: int, heads: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _visible(encoder: Encoder, image: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """Tokens of the patches that are seen."""
    tokens: Tensor = encoder.transformer(taken(encoder.embedded(image), seen), bias)
    return tokens
