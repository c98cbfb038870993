"""Views of places: crops, mirrorings and blur, drawn by the seed and the step alone.

After SpectralEarth (Braham et al. 2024, arXiv 2408.08447): two dates of a place are its two views, or the one image
twice; colours stay as they are, for in them lies what spectra tell.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .locations import FloatImages, Locations
from .pretrain_recipe import PretrainRecipe

_VIEWS = 11
"""Key of the random streams."""
_RATIO = (3 / 4, 4 / 3)
"""Of a crop's width to its height."""
_TRIES = 10
_SIGMA = (0.1, 2.0)
"""Of the blur, px."""


class Views:
    """Batches of views `(views, batch, D, size, size)`, float32.

    Args:
        locations: of standardised images.
        recipe: how to draw.
        count: views of each place.
    """

    def __init__(self, locations: Locations, recipe: PretrainRecipe, count: int) -> None:
        self.locations, self.recipe, self.count = locations, recipe, count

    def batch(self, step: int) -> Tensor:
        """The batch of a step; its places differ as long as there are enough."""
        size, total = self.recipe.batch, len(self.locations)
        rng = np.random.default_rng([self.recipe.seed, _VIEWS, step])
        places = rng.choice(total, size, replace=size > total)
        samples = [self._views(int(place), rng) for place in places]
        return torch.stack(samples, 1)

    def _views(self, place: int, rng: np.random.Generator) -> Tensor:
        """Views of one place, `(views, D, size, size)`: of different dates as long as there are enough."""
        dates = self.locations.dates(place)
        chosen = rng.permutation(dates)[np.arange(self.count) % dates]
        images = {int(date): self.locations.read(place, int(date)) for date in chosen}
        height, width = (min(image.shape[axis] for image in images.values()) for axis in (1, 2))
        edge = min(self.recipe.edge, height, width)
        row, col = (int(rng.integers(extent - edge + 1)) for extent in (height, width))
        squares = {date: image[:, row : row + edge, col : col + edge] for date, image in images.items()}
        return torch.stack([view(squares[int(date)], self.recipe, rng) for date in chosen])


def view(image: FloatImages, recipe: PretrainRecipe, rng: np.random.Generator) -> Tensor:
    """A random crop of an image `(D, y, x)`, resized, mirrored and blurred by chance: `(D, size, size)`."""
    rows, cols = crop_of(image.shape[1], image.shape[2], recipe.crop, rng)
    x = torch.from_numpy(np.ascontiguousarray(image[:, rows, cols], np.float32))
    if x.shape[1:] != (recipe.size, recipe.size):
        x = functional.interpolate(x[None], (recipe.size,) * 2, mode="bilinear", antialias=True)[0]
    flipped = [axis for axis in (1, 2) if rng.random() < recipe.flip]
    x = x.flip(flipped) if flipped else x
    return blurred(x, float(rng.uniform(*_SIGMA))) if rng.random() < recipe.blur else x


def crop_of(height: int, width: int, share: tuple[float, float], rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random crop whose area is a share of the whole and whose sides are about alike."""
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*share)
        ratio = math.exp(rng.uniform(*np.log(_RATIO)))
        rows, cols = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < cols <= width:
            row, col = int(rng.integers(height - rows + 1)), int(rng.integers(width - cols + 1))
            return slice(row, row + rows), slice(col, col + cols)
    edge = min(height, width)
    row, col = (height - edge) // 2, (width - edge) // 2
    return slice(row, row + edge), slice(col, col + edge)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Each band `(D, y, x)` smoothed by a Gaussian; its kernel is about a tenth of the image wide, 13 px of 128."""
    reach = max(image.shape[1] // 20, 1)
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(image[:, None], (reach,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]
