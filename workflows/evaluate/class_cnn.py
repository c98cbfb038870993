"""Convolutional baselines: along the spectrum of a pixel, and over the patch about it."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from cubeloom.pipeline.scene import BoolArray
from cubeloom.workflows.train.classifier import class_weights
from cubeloom.workflows.train.labelled import LabelledImage

from .class_methods import ClassMethod, Float32Array, usable_bands

STRIP = 32
"""Rows of an image that are classified at once."""


class CnnMethod(ClassMethod):
    """A convolutional network trained from nothing on the training pixels.

    Attributes:
        steps: of the optimiser (AdamW, cosine to zero).
        batch: pixels of a step, drawn in epochs.
        learning_rate: the first one.
        weight_decay: of AdamW.
        balance: 0 counts every pixel alike, 1 every class.
    """

    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    balance: float = Field(default=0.5, ge=0, le=1)

    @property
    @abstractmethod
    def side(self) -> int:
        """Of the patch that the network sees of a pixel, px; odd."""

    @abstractmethod
    def network(self, bands: int, classes: int) -> nn.Module:
        """(N, bands, h, w) -> (N, classes, h - side + 1, w - side + 1)."""

    def fit(self, image: LabelledImage, train: BoolArray, seed: int) -> "CnnMapper":
        """Train on patches about the training pixels; spectra about them count, labels about them do not."""
        cube = padded(image, self.side // 2)
        row, col = np.nonzero(train)
        values = np.array([one.value for one in image.classes])
        labels = image.labels[train]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network(len(cube), len(values))
            loss = self._train(
                network,
                torch.from_numpy(cube).unfold(1, self.side, 1).unfold(2, self.side, 1),
                (torch.from_numpy(row), torch.from_numpy(col)),
                torch.from_numpy(np.searchsorted(values, labels)),
                torch.from_numpy(class_weights(labels, self.balance).astype(np.float32)),
            )
        parameters = sum(weight.numel() for weight in network.parameters())
        loss_known = {"last_loss": round(loss, 4)} if math.isfinite(loss) else {}
        return CnnMapper(network.eval(), self.side, {"weights": parameters, **loss_known})

    def _train(
        self, network: nn.Module, patches: Tensor, places: tuple[Tensor, Tensor], targets: Tensor, weights: Tensor
    ) -> float:
        """Fit the network; returns the mean loss of the last tenth of the steps."""
        optimiser = torch.optim.AdamW(network.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        order, losses = torch.empty(0, dtype=torch.long), []
        for _ in range(self.steps):
            if len(order) < 2:  # batch normalisation takes no single pixel
                order = torch.randperm(len(targets))
            drawn, order = order[: self.batch], order[self.batch :]
            seen = patches[:, places[0][drawn], places[1][drawn]].transpose(0, 1)
            scores = network(_turned(seen)).flatten(1)
            loss = (functional.cross_entropy(scores, targets[drawn], reduction="none") * weights[drawn]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses[-math.ceil(self.steps / 10) :]))


class SpectralCnn(CnnMethod):
    """The network of Hu, Huang, Wei, Zhang and Li, Journal of Sensors 2015, 258619, on spectra of single pixels.

    20 kernels of a ninth of the bands, tanh, maxima over windows that leave about 40 values, 100 units with tanh, and a
    linear layer. It differs from theirs in the training and in the weights at the start.
    """

    @property
    def what(self) -> str:
        """In words."""
        return f"1-D convolutional network on spectra (after Hu et al. 2015), {self.steps} steps"

    @property
    def side(self) -> int:
        """One pixel."""
        return 1

    def network(self, bands: int, classes: int) -> nn.Module:
        """The network; spectra of each pixel by itself."""
        kernel = max(1, bands // 9)
        outputs = bands - kernel + 1
        window = math.ceil(outputs / 40)
        return _ByPixel(
            nn.Sequential(
                nn.Conv1d(1, 20, kernel),
                nn.Tanh(),
                nn.MaxPool1d(window, ceil_mode=True),
                nn.Flatten(),
                nn.Linear(20 * math.ceil(outputs / window), 100),
                nn.Tanh(),
                nn.Linear(100, classes),
            )
        )


class PatchCnn(CnnMethod):
    """A network on the square about a pixel: a 1 x 1 convolution, then 3 x 3 ones until one pixel is left.

    None of its convolutions pads, so over a whole image it gives at each pixel what it gives for the patch about it, at
    the price of one pass.

    Attributes:
        patch: edge of the square, px, odd.
        width: features of each convolution, all with batch normalisation and rectifier.
        dropout: share of the features that are dropped before the last layer, in training.
    """

    patch: int = Field(default=9, ge=3)
    width: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    @field_validator("patch")
    @classmethod
    def _has_a_middle(cls, patch: int) -> int:
        if patch % 2 == 0:
            raise ValueError("a patch has a pixel in its middle: its edge is odd")
        return patch

    @property
    def what(self) -> str:
        """In words."""
        return f"2-D convolutional network on patches of {self.patch} x {self.patch} px, {self.steps} steps"

    @property
    def side(self) -> int:
        """The patch's."""
        return self.patch

    def network(self, bands: int, classes: int) -> nn.Module:
        """The network."""
        layers = _normalised(bands, self.width, 1)
        for _ in range(self.patch // 2):
            layers += _normalised(self.width, self.width, 3)
        return nn.Sequential(*layers, nn.Dropout(self.dropout), nn.Conv2d(self.width, classes, 1))


METHODS = {"cnn1d": SpectralCnn, "cnn2d": PatchCnn}


@dataclass(frozen=True, eq=False)
class CnnMapper:
    """A trained network.

    Attributes:
        network: as `CnnMethod.network` has it.
        side: of the patch that it sees of a pixel, px.
        details: its size and its last loss.
    """

    network: nn.Module
    side: int
    details: Mapping[str, Any]

    def map(self, image: LabelledImage) -> Float32Array:
        """Probabilities `(K, y, x)`, strip by strip."""
        cube, made = torch.from_numpy(padded(image, self.side // 2)), []
        with torch.inference_mode():
            for row in range(0, image.shape[0], STRIP):
                strip = cube[None, :, row : row + STRIP + self.side - 1]
                made.append(self.network(strip)[0].softmax(0))
        return np.asarray(torch.cat(made, 1).numpy())


class _ByPixel(nn.Module):
    """A network of spectra `(n, 1, bands)`, for every pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, h, w) → (N, classes, h, w)."""
        spectra = x.permute(0, 2, 3, 1).reshape(-1, 1, x.shape[1])
        scores: Tensor = self.network(spectra).view(x.shape[0], *x.shape[2:], -1)
        return scores.permute(0, 3, 1, 2)


def padded(image: LabelledImage, margin: int) -> Float32Array:
    """The usable bands, each with mean 0 and standard deviation 1 over the valid pixels, mirrored past the edges.

    Pixels that are not valid are 0, the mean.
    """
    cube = image.cube[usable_bands(image)]
    spectra = cube[:, image.valid].astype(np.float64)
    mean, deviation = spectra.mean(axis=1), np.maximum(spectra.std(axis=1), 1e-12)
    scaled: npt.NDArray[Any] = (cube - mean[:, None, None]) / deviation[:, None, None]
    filled = np.where(image.valid, scaled, 0).astype(np.float32)
    return np.pad(filled, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")


def _turned(patches: Tensor) -> Tensor:
    """A batch of patches, all mirrored and turned by a right angle as drawn."""
    if patches.shape[-1] == 1:
        return patches
    mirror, turns = int(torch.randint(2, ())), int(torch.randint(4, ()))
    return torch.rot90(patches.flip(-1) if mirror else patches, turns, (2, 3))


def _normalised(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
