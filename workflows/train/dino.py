"""Self-distillation without labels (DINO, Caron et al., ICCV 2021) of spectral cubes."""

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.models.cards import Card
from cubeloom.models.network import Backbone, Network

from .pretrain_module import FollowingModule, follower
from .pretrain_recipe import Dino, PretrainRecipe


class DinoHead(nn.Module):
    """Three linear layers to a bottleneck of unit length, then likenesses to prototypes of unit length.

    Args:
        inputs: length of the embedding.
        method: the widths.
    """

    def __init__(self, inputs: int, method: Dino) -> None:
        super().__init__()
        widths = (inputs, method.hidden, method.hidden, method.bottleneck)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last = nn.Linear(method.bottleneck, method.outputs, bias=False)
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) → (N, outputs)."""
        y = functional.normalize(self.layers(x), dim=1)
        return functional.linear(y, functional.normalize(self.last.weight, dim=1))


class DinoModule(FollowingModule):
    """The student foretells what the teacher, which follows it, makes of the other view.

    Args:
        network: the student.
        recipe: how.
        card: of the weights to come.
        method: the recipe's part on this.
    """

    def __init__(self, network: Backbone, recipe: PretrainRecipe, card: Card, method: Dino) -> None:
        super().__init__(network, recipe, card, method)
        self.method = method
        self.head = DinoHead(self.width, method)
        self.teacher, self.teacher_head = follower(network), follower(self.head)
        self.register_buffer("centre", torch.zeros(method.outputs))

    @property
    def trained(self) -> Network:
        """The teacher, which is the better of the two."""
        return self.teacher

    def pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Followers, each with whom it follows."""
        return ((self.teacher, self.network), (self.teacher_head, self.head))

    def momentum(self, step: int) -> float:
        """From the recipe's to 1 in a half cosine over all steps."""
        return 1 - (1 - self.method.momentum) * (1 + math.cos(math.pi * step / self.recipe.steps)) / 2

    def teacher_temperature(self, step: int) -> float:
        """Of a step."""
        first, last = self.method.teacher_temperature
        warm = max(self.method.teacher_warmup * self.recipe.steps, 1)
        return first + (last - first) * min(step / warm, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Cross entropy between the teacher's and the student's outputs of different views `(2, N, D, H, W)`."""
        views = batch.flatten(0, 1)
        with torch.no_grad():
            shown = self.teacher_head(self.embed(self.teacher, views)).float()
        said = self.head(self.embed(self.network, views)).float()
        centre = self.get_buffer("centre")
        wanted = ((shown - centre) / self.teacher_temperature(self.global_step)).softmax(1)
        loss = cross_views(wanted, said / self.method.student_temperature, len(batch))
        centre.lerp_(shown.mean(0), 1 - self.method.centre_momentum)
        return loss

    def on_after_backward(self) -> None:
        """The last layer does not learn at first, which keeps the outputs from collapsing."""
        if self.global_step < self.method.freeze_last * self.recipe.steps:
            self.head.last.weight.grad = None


def cross_views(wanted: Tensor, logits: Tensor, views: int) -> Tensor:
    """Mean cross entropy of the distributions of each view with the logits of every other.

    Args:
        wanted: probabilities `(views · N, outputs)`.
        logits: `(views · N, outputs)`.
        views: of each place.
    """
    p, q = (x.view(views, -1, x.shape[1]) for x in (wanted, logits.log_softmax(1)))
    pairs = [(a, b) for a in range(views) for b in range(views) if a != b]
    return -torch.stack([(p[a] * q[b]).sum(1).mean() for a, b in pairs]).mean()
