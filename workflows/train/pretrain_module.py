"""What the ways of pretraining share: their optimisers, and networks that follow those that learn."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cubeloom.models.cards import Card
from cubeloom.models.network import Backbone

from .locations import Locations
from .loop import LoopModule
from .pretrain_recipe import Dino, Moco, PretrainRecipe

_INERTIA = 0.9
"""Of stochastic gradient descent."""

N = TypeVar("N", bound=nn.Module)


def follower(network: N) -> N:
    """A copy that does not learn."""
    return deepcopy(network).requires_grad_(False)


class PretrainModule(LoopModule):
    """An encoder in pretraining.

    Args:
        network: the encoder.
        recipe: how.
        card: of the weights to come.
    """

    network: Backbone
    recipe: PretrainRecipe

    def __init__(self, network: Backbone, recipe: PretrainRecipe, card: Card) -> None:
        super().__init__(network, recipe)
        self.card = card

    def look_at(self, locations: Locations) -> None:
        """Take from the images what has to be known of all of them before the first step."""

    def optimiser(self) -> torch.optim.Optimizer:
        """As the recipe has it."""
        recipe = self.recipe
        if recipe.optimiser == "adam":
            return super().optimiser()
        return torch.optim.SGD(
            self.learning(), lr=recipe.learning_rate, momentum=_INERTIA, weight_decay=recipe.weight_decay
        )


class FollowingModule(PretrainModule):
    """A module some of whose networks follow others after each step of the optimiser.

    Args:
        network: the encoder.
        recipe: how.
        card: of the weights to come.
        method: the recipe's part on this.
    """

    def __init__(self, network: Backbone, recipe: PretrainRecipe, card: Card, method: Moco | Dino) -> None:
        super().__init__(network, recipe, card)
        self.of_map = method.embedding == "map"

    @property
    def width(self) -> int:
        """Length of what is compared, before the head."""
        return self.network.levels[-1].channels if self.of_map else self.network.embedding_size

    def embed(self, network: Backbone, x: Tensor) -> Tensor:
        """What is compared of a network, before the head: (N, D, H, W) → (N, `width`)."""
        if not self.of_map:
            embedding: Tensor = network(x)
            return embedding
        [features] = network.features(x, [len(network.levels) - 1])
        return features.mean((2, 3))

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Followers, each with whom it follows."""
        raise NotImplementedError

    def momentum(self, step: int) -> float:
        """By which they follow."""
        raise NotImplementedError

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's arguments
        """Follow what was learnt."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        weight = 1 - self.momentum(step)
        with torch.no_grad():
            for slow, fast in self.pairs():
                torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), weight)
