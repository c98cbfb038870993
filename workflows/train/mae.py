"""Masked autoencoding of spectral cubes (He et al., CVPR 2022; Braham et al. 2024, arXiv 2408.08447)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card
from cubeloom.models.spectral_networks import SpectralNetwork
from cubeloom.models.torchvision_cure import make_torchvision_importable

from .locations import Locations
from .pretrain_module import PretrainModule
from .pretrain_recipe import Mae, PretrainRecipe
from .principal_components import principal_components

make_torchvision_importable()

from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

_EPSILON = 1e-6
"""Added to the variance of a token's values."""
_FARTHEST = 5.0
"""Of a component from its mean, in standard deviations: the few that lie farther shall not rule the error."""


class MaeModule(PretrainModule):
    """An encoder that sees few tokens of a cube, and a decoder that fills in the others.

    The encoder's positions are set to sines and cosines, unless it starts from given weights, and stay as they are.

    Args:
        network: the encoder, whose backbone is a vision transformer.
        recipe: how.
        card: of the weights to come.
        method: the recipe's part on this.

    Raises:
        ConfigError: the backbone has no tokens, or is built for another size.
    """

    network: SpectralNetwork

    def __init__(self, network: Any, recipe: PretrainRecipe, card: Card, method: Mae) -> None:  # noqa: ANN401
        super().__init__(network, recipe, card)
        if not isinstance(network, SpectralNetwork) or not isinstance(network.backbone, VisionTransformer):
            raise ConfigError(
                f"method mae masks the tokens of a vision transformer; {recipe.model} has none: use moco or dino"
            )
        vit: Any = network.backbone
        self.method, self.patch, width = method, network.multiple, method.decoder_width
        self.side = recipe.size // self.patch
        if vit.pos_embed.shape[1] != self.side**2 + 1:
            raise ConfigError(f"size {recipe.size} is no multiple of the tokens' {self.patch} px")
        vit.pos_embed.requires_grad_(False)
        if recipe.weights is None:
            vit.pos_embed.copy_(positions(self.side, vit.embed_dim))
        self.enter = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("places", positions(self.side, width), persistent=False)
        self.decoder = nn.Sequential(
            *(Block(width, method.decoder_heads, qkv_bias=True) for _ in range(method.decoder_depth))
        )
        foretold = method.components or len(card.mean)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.patch**2 * foretold))
        nn.init.normal_(self.mask_token, std=0.02)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean square error of the tokens that were taken away, of views `(1, N, D, H, W)`."""
        x = batch[0]
        kept, masked = self.draw(len(x), x.device)
        foretold = self.decode(self.encode(x, kept), kept, masked)
        return functional.mse_loss(foretold, taken(self._targets(x), masked))

    def look_at(self, locations: Locations) -> None:
        """The principal components, where they are what is foretold."""
        if self.method.components is not None:
            components = principal_components(locations, self.method.components, self.recipe.seed)
            self.register_buffer("components", torch.from_numpy(components), persistent=False)

    def _targets(self, x: Tensor) -> Tensor:
        """What is foretold of each token of (N, D, H, W), (N, tokens, values)."""
        if self.method.components is None:
            return targets(x, self.patch)
        known = functional.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        scores = torch.einsum("kd,ndhw->nkhw", self.get_buffer("components"), known)
        return patches(scores.clamp(-_FARTHEST, _FARTHEST), self.patch).flatten(2)

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices of the tokens that are kept, and of those that are not, `(N, n)` each, ascending."""
        return draw_tokens(count, self.side**2, self.method.mask_ratio, device)

    def encode(self, x: Tensor, kept: Tensor) -> Tensor:
        """(N, D, H, W) and the tokens to see → the class token and theirs, (N, 1 + n, d)."""
        vit: Any = self.network.backbone
        if self.method.adapter == "visible":
            tokens = self._embed(visible(x, kept, self.patch))
        else:
            tokens = taken(self._embed(x), kept)
        places = vit.pos_embed.expand(len(x), -1, -1)
        tokens = tokens + taken(places[:, 1:], kept)
        first = vit.cls_token + places[:, :1]
        return vit.norm(vit.blocks(vit.norm_pre(torch.cat([first, tokens], 1))))  # type: ignore[no-any-return]

    def _embed(self, x: Tensor) -> Tensor:
        """Tokens of an image without their positions, (N, tokens, d)."""
        tokens: Tensor = self.network.backbone.patch_embed.proj(self.network.spectral_adapter(x))
        return tokens.flatten(2).transpose(1, 2)

    def decode(self, seen: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        """What the decoder makes of the tokens that were taken away, (N, m, patch · patch · D)."""
        seen = self.enter(seen)
        whole = filled(seen[:, 1:], kept, self.mask_token, self.side**2)
        y = self.decoder(torch.cat([seen[:, :1], whole], 1) + self.get_buffer("places"))
        return self.leave(taken(y[:, 1:], masked))  # type: ignore[no-any-return]


def draw_tokens(count: int, total: int, mask_ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the tokens that are kept, and of those that are not, `(count, n)` each, ascending."""
    order = torch.rand(count, total, device=device).argsort(1)
    keep = max(int(total * (1 - mask_ratio)), 1)
    return order[:, :keep].sort(1).values, order[:, keep:].sort(1).values


def taken(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens (N, L, d) of these indices (N, n), (N, n, d)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def filled(tokens: Tensor, kept: Tensor, mask_token: Tensor, total: int) -> Tensor:
    """All tokens (N, total, d): those kept (N, n, d) at their indices (N, n), elsewhere the token of masked ones."""
    whole = mask_token.to(tokens.dtype).repeat(len(tokens), total, 1)
    return whole.scatter(1, kept[..., None].expand(-1, -1, tokens.shape[2]), tokens)


def patches(x: Tensor, edge: int) -> Tensor:
    """(N, D, H, W) → (N, tokens, D, edge, edge), tokens by row and column."""
    n, bands, height, width = x.shape
    y = x.reshape(n, bands, height // edge, edge, width // edge, edge)
    return y.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def visible(x: Tensor, kept: Tensor, edge: int) -> Tensor:
    """The pixels of the tokens kept (N, n), one token below the other: (N, D, n · edge, edge)."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    return patches(x, edge)[rows, kept].transpose(1, 2).flatten(2, 3)


def targets(x: Tensor, edge: int) -> Tensor:
    """The values of each token, (N, tokens, D · edge · edge), standardised over the token."""
    values = patches(x, edge).flatten(2)
    variance, mean = torch.var_mean(values, dim=2, keepdim=True)
    return (values - mean) / (variance + _EPSILON).sqrt()


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of column and row of a square of tokens, after zeros for the class token.

    Args:
        side: tokens along an edge.
        width: of a token; a multiple of 4.

    Returns:
        (1, 1 + side², width)
    """
    rates = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows = waves[:, None].expand(-1, side, -1)
    cols = waves[None].expand(side, -1, -1)
    whole = torch.cat([cols, rows], 2).flatten(0, 1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), whole])[None].float()
