"""The stages as functions of a lazy Scene: what `import cubeloom` offers from Python.

Each takes a Scene and the parameters of its stage and gives a new lazy Scene; nothing is computed before `.compute()`,
`.persist()` or `write_scene`. The stage's class documents the parameters, and wrong ones are a `ConfigError`.
"""

from typing import Any, TypeVar

import xarray as xr
from pydantic import ValidationError

from cubeloom.errors import ConfigError

from .lift import lift, lift_guide
from .stages import Pair, Stage, explain, stage_class

S = TypeVar("S", bound=Stage)


def _lifted(name: str, scene: xr.Dataset, parameters: dict[str, Any], *guides: xr.Dataset) -> xr.Dataset:
    return lift(_checked(stage_class(name), parameters))(scene, *guides)


def _checked(cls: type[S], parameters: dict[str, Any]) -> S:
    try:
        return cls.model_validate(parameters)
    except ValidationError as error:
        raise ConfigError(f"{cls.name}: {explain(error, cls)}") from None


def pair(scene: xr.Dataset, guide: xr.Dataset, /, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Bring a scene of another sensor onto a scene's grid, or one a whole number of times finer; gives that guide.

    With `coregister="correct"` it lies where the two were found to agree. What it gives is a Scene like any other,
    and what stages with a guide take after the scene. Parameters: see `Pair`.
    """
    stage = _checked(Pair, parameters)
    return lift_guide(stage, stage.regridded)(scene, guide)


def mask(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Mark the pixels that take part: adds `valid(y, x)`, False at background, cloud, shadow and thick cirrus.

    The measurement stays as it is; what later stages make is NaN where `valid` is False. Parameters: see `Mask`.
    """
    return _lifted("mask", scene, parameters)


def destripe(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Remove the column stripes of a pushbroom sensor: adds `destriped(band, y, x)`. Parameters: see `Destripe`."""
    return _lifted("destripe", scene, parameters)


def select_bands(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Keep some bands of every cube. Parameters: see `SelectBands`."""
    return _lifted("select_bands", scene, parameters)


def resample_bands(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Resample the subject to other bands by their spectral response. Parameters: see `ResampleBands`."""
    return _lifted("resample_bands", scene, parameters)


def denoise(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Remove noise: adds `denoised(band, y, x)` beside the measurement. Parameters: see `Denoise`."""
    return _lifted("denoise", scene, parameters)


def superres(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Refine the grid by a whole factor: a Scene with `superresolved(band, y, x)`. Parameters: see `Superres`."""
    return _lifted("superres", scene, parameters)


def sharpen(scene: xr.Dataset, guide: xr.Dataset, /, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Bring spectra to the resolution of a guide, such as Sentinel-2: a Scene with `sharpened(band, y, x)`.

    The guide is brought onto a grid a whole number of times finer than the scene's where it does not lie on one;
    `pair` also corrects its displacement. Parameters: see `Sharpen`.
    """
    return _lifted("sharpen", scene, parameters, guide)


def texture(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Measure the texture about every pixel: a Scene with `texture(band, y, x)`. Parameters: see `Texture`."""
    return _lifted("texture", scene, parameters)


def fuse(scene: xr.Dataset, radar: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Draw optical spectra towards what the texture of a radar scene says of them: adds `fused(band, y, x)`.

    The radar scene is brought onto the scene's grid where it does not lie on it. Parameters: see `Fuse`.
    """
    return _lifted("fuse", scene, parameters, radar)


def classify(scene: xr.Dataset, /, *radar: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Classify every valid pixel: adds `classes`, `probability`, `confidence` and `entropy`.

    A network of two sensors takes a radar scene too. Parameters: see `Classify`.
    """
    return _lifted("classify", scene, parameters, *radar)


def embed(scene: xr.Dataset, /, *radar: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Describe a scene by the features of a backbone: a Scene with `embedding(feature, y, x)` on a coarser grid.

    A network of two sensors takes a radar scene too. Parameters: see `Embed`.
    """
    return _lifted("embed", scene, parameters, *radar)


def indices(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Spectral indices of a scene (`names=["NDVI", "NDWI"]`): adds one variable `(y, x)` each.

    Parameters: see `Indices`.
    """
    return _lifted("indices", scene, parameters)


def despeckle(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Reduce the speckle of radar backscatter: adds `despeckled(band, y, x)`. Parameters: see `Despeckle`."""
    return _lifted("despeckle", scene, parameters)


def to_db(scene: xr.Dataset, **parameters: Any) -> xr.Dataset:  # noqa: ANN401
    """Bring radar backscatter to decibels: adds `<subject>_db(band, y, x)`. Parameters: see `ToDb`."""
    return _lifted("to_db", scene, parameters)
