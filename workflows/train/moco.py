"""Momentum contrast, version 2 (Chen et al. 2020, arXiv 2003.04297), of spectral cubes."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.models.cards import Card
from cubeloom.models.network import Backbone

from .pretrain_module import FollowingModule, follower
from .pretrain_recipe import Moco, PretrainRecipe


class MocoModule(FollowingModule):
    """A view's outputs shall be near those that the slower encoder makes of the other view, and far from the queue's.

    Args:
        network: the encoder.
        recipe: how.
        card: of the weights to come.
        method: the recipe's part on this.
    """

    def __init__(self, network: Backbone, recipe: PretrainRecipe, card: Card, method: Moco) -> None:
        super().__init__(network, recipe, card, method)
        self.method = method
        self.head = projection(self.width, method.hidden, method.outputs)
        self.slow, self.slow_head = follower(network), follower(self.head)
        queue = functional.normalize(torch.randn(method.queue, method.outputs), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Followers, each with whom it follows."""
        return ((self.slow, self.network), (self.slow_head, self.head))

    def momentum(self, step: int) -> float:
        """By which they follow."""
        return self.method.momentum

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Cross entropy of finding the other view of a place among the queue, of views `(2, N, D, H, W)`."""
        query = functional.normalize(self.head(self.embed(self.network, batch[0])).float(), dim=1)
        with torch.no_grad():
            key = functional.normalize(self.slow_head(self.embed(self.slow, batch[1])).float(), dim=1)
        loss = contrast(query, key, self.get_buffer("queue"), self.method.temperature)
        self._enqueue(key)
        return loss

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Put the keys in the place of the oldest."""
        queue, place = self.get_buffer("queue"), self.get_buffer("next")
        keys = keys[-len(queue) :]
        queue[(place + torch.arange(len(keys), device=keys.device)) % len(queue)] = keys
        place.copy_((place + len(keys)) % len(queue))


def projection(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE: cross entropy of each query's own key among it and the queue; all of unit length.

    Args:
        query: (N, d)
        key: (N, d), without gradients.
        queue: (K, d)
        temperature: that likenesses are divided by.
    """
    own = (query * key).sum(1, keepdim=True)
    likeness = torch.cat([own, query @ queue.clone().t()], 1) / temperature
    return functional.cross_entropy(likeness, torch.zeros(len(query), dtype=torch.long, device=query.device))
