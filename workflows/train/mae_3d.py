"""Masked autoencoding of cubes, as SpectralGPT learns (Hong et al., TPAMI 46(8), 2024, arXiv 2311.07113)."""

from typing import Any

import torch
from torch import Tensor

from cubeloom.errors import ConfigError
from cubeloom.models.cards import Card
from cubeloom.models.spectral_gpt import SpectralGpt
from cubeloom.models.spectral_gpt_decoder import SpectralGptDecoder, multi_target_loss
from cubeloom.models.spectral_gpt_layers import patches

from .mae import draw_tokens
from .pretrain_module import PretrainModule
from .pretrain_recipe import Mae3d, PretrainRecipe

_BETAS = (0.9, 0.95)
"""Of Adam, as the authors have them."""


class Mae3dModule(PretrainModule):
    """An encoder that sees few of the cubes that an image is cut into, and a decoder that fills in the others.

    Args:
        network: the encoder.
        recipe: how.
        card: of the weights to come.
        method: the recipe's part on this.

    Raises:
        ConfigError: the network has no such tokens, or the views are not of whole ones.
    """

    network: SpectralGpt

    def __init__(self, network: Any, recipe: PretrainRecipe, card: Card, method: Mae3d) -> None:  # noqa: ANN401
        if not isinstance(network, SpectralGpt):
            raise ConfigError(f"method mae_3d is for spectral_gpt_*, whose tokens are cubes; {recipe.model} has none")
        super().__init__(network, recipe, card)
        if recipe.size % network.multiple:
            raise ConfigError(f"size {recipe.size} is no multiple of the tokens' {network.multiple} px")
        self.method, self.side = method, recipe.size // network.multiple
        self.decoder = SpectralGptDecoder(network, method.decoder_width, method.decoder_depth, method.decoder_heads)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of what the decoder makes of views `(1, N, D, H, W)`."""
        encoder = self.network
        x = encoder.scaled(batch[0])
        kept, masked = draw_tokens(len(x), encoder.groups * self.side**2, self.method.mask_ratio, x.device)
        made = self.decoder(encoder.encode(x, kept), kept, self.side, self.side)
        return multi_target_loss(made, patches(x, encoder.group, encoder.multiple), masked, encoder.groups)

    def optimiser(self) -> torch.optim.Optimizer:
        """As of every pretraining, with the authors' inertia."""
        optimiser = super().optimiser()
        for group in optimiser.param_groups:
            if "betas" in group:
                group["betas"] = _BETAS
        return optimiser
