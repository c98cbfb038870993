"""What SpectralGPT is pretrained with (Hong et al. 2024, arXiv 2311.07113): a decoder of masked tokens, and a loss."""

import torch
from torch import Tensor, nn

from .spectral_gpt import SpectralGpt
from .spectral_gpt_layers import (
    EPSILON,
    POSITION_STD,
    Block,
    initialise,
    position_table,
    separable_positions,
)


class SpectralGptDecoder(nn.Module):
    """Fills in the tokens that the encoder did not see; its keys are those of the authors' files.

    Args:
        encoder: whose tokens it takes.
        width: of its own.
        depth: blocks.
        heads: of their attention.
    """

    def __init__(self, encoder: SpectralGpt, width: int = 512, depth: int = 4, heads: int = 16) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed_spatial = position_table(encoder.side**2, width)
        self.decoder_pos_embed_temporal = position_table(encoder.groups, width)
        self.decoder_blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, EPSILON)
        self.decoder_pred = nn.Linear(width, encoder.group * encoder.multiple**2)
        nn.init.normal_(self.mask_token, std=POSITION_STD)
        initialise(self)

    def forward(self, seen: Tensor, kept: Tensor, rows: int, cols: int) -> Tensor:
        """All tokens of an image from those that the encoder saw.

        Args:
            seen: (N, n, width of the encoder).
            kept: (N, n), their indices.
            rows: of tokens in the image.
            cols: of tokens in the image.

        Returns:
            (N, groups · rows · cols, values of a token)
        """
        places = separable_positions(self.decoder_pos_embed_temporal, self.decoder_pos_embed_spatial, rows, cols)
        tokens = self.decoder_embed(seen)
        whole = self.mask_token.to(tokens.dtype).expand(len(seen), places.shape[1], -1)
        y = whole.scatter(1, kept[..., None].expand_as(tokens), tokens) + places
        for block in self.decoder_blocks:
            y = block(y)
        made: Tensor = self.decoder_pred(self.decoder_norm(y))
        return made


def multi_target_loss(foretold: Tensor, target: Tensor, masked: Tensor, groups: int) -> Tensor:
    """Squared errors of the masked tokens, and of the sums over the groups of bands at each place (section 3.3).

    Args:
        foretold: (N, groups · places, values of a token).
        target: of the same shape.
        masked: (N, m), indices of the tokens that were not seen.
        groups: of bands.
    """
    wrong = foretold - target
    of_masked = wrong.take_along_dim(masked[..., None], 1).square().mean()
    of_sums = wrong.view(len(wrong), groups, -1, wrong.shape[2]).sum(1).square().mean()
    return of_masked + of_sums
