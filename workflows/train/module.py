"""The network in training: its step, its optimiser, and the moving average of its weights."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from cubeloom.models.network import Network

from .denoiser_recipe import DenoiserRecipe
from .loop import LoopModule
from .patches import Batch

_CHARBONNIER = 1e-3
"""Where sqrt(x^2 + e^2) turns from a parabola to |x|."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def charbonnier(estimate: Tensor, target: Tensor) -> Tensor:
    """Mean of sqrt(difference^2 + e^2) (Charbonnier et al., ICIP 1994)."""
    return torch.sqrt((estimate - target) ** 2 + _CHARBONNIER**2).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "charbonnier": charbonnier,
}


class AveragedModule(LoopModule):
    """A network whose weights' moving average is what is judged and saved.

    Attributes:
        average: the moving average; None where the recipe wants none.
    """

    average: AveragedModel | None

    @property
    def trained(self) -> Network:
        """What is judged and saved: the average, or the network itself."""
        return self.network if self.average is None else cast(Network, self.average.module)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's arguments
        """Follow the weights after each step of the optimiser."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def learning(self) -> Any:  # noqa: ANN401 - what torch's optimisers take
        """All of the network; its average only follows."""
        return self.network.parameters()


class DenoiserModule(AveragedModule):
    """A network that learns the correction of its channel 0.

    What a step draws at random depends on the seed and the step alone.

    Attributes:
        network: what learns.
    """

    def __init__(self, network: Network, recipe: DenoiserRecipe) -> None:
        super().__init__(network, recipe)
        for part in network.modules():
            if isinstance(part, NORMS):
                part.momentum = recipe.norm_momentum
        self.recipe: DenoiserRecipe = recipe
        self.loss = LOSSES[recipe.loss]
        if recipe.init == "xavier" and recipe.weights is None:
            xavier(network)
        self.average = moving_average(network, recipe.ema) if recipe.ema else None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what the network draws, and hold the batch statistics once they are to be held."""
        if self.global_step >= self.recipe.freeze_norm * self.recipe.steps:
            for part in self.network.modules():
                if isinstance(part, NORMS):
                    part.eval()
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        inputs, correction = batch
        return self.loss(self.network(inputs) - inputs[:, :1], correction)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """A moving average that follows quickly at first: its decay is (1 + n) / (10 + n) until that reaches `decay`."""

    @torch.no_grad()
    def update(averages: Any, values: Any, count: Tensor | int) -> None:  # noqa: ANN401 - lists of tensors
        n = int(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, values, weight)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def xavier(network: nn.Module) -> None:
    """Initial weights of all convolutions: normal, of the variance of Glorot and Bengio (AISTATS 2010)."""
    for weight in network.parameters():
        if weight.ndim > 2:
            nn.init.xavier_normal_(weight)
