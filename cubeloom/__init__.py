"""Cubeloom: imaging-spectrometer scenes from a catalog to analysis-ready Zarr.

The names below are imported when they are first used, so that `import cubeloom` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubeloom.pipeline.engine import write_scene as write_scene
    from cubeloom.pipeline.functions import classify as classify
    from cubeloom.pipeline.functions import denoise as denoise
    from cubeloom.pipeline.functions import despeckle as despeckle
    from cubeloom.pipeline.functions import destripe as destripe
    from cubeloom.pipeline.functions import embed as embed
    from cubeloom.pipeline.functions import fuse as fuse
    from cubeloom.pipeline.functions import indices as indices
    from cubeloom.pipeline.functions import mask as mask
    from cubeloom.pipeline.functions import pair as pair
    from cubeloom.pipeline.functions import resample_bands as resample_bands
    from cubeloom.pipeline.functions import select_bands as select_bands
    from cubeloom.pipeline.functions import sharpen as sharpen
    from cubeloom.pipeline.functions import superres as superres
    from cubeloom.pipeline.functions import texture as texture
    from cubeloom.pipeline.functions import to_db as to_db
    from cubeloom.pipeline.readers import open_scene as open_scene
    from cubeloom.pipeline.readers.sentinel2_grids import open_grids as open_grids
    from cubeloom.pipeline.scene import validate_scene as validate_scene
    from cubeloom.workflows.train.fit_head import fit_head as fit_head

__version__ = "0.1.0"

_HOMES = {
    "open_scene": "cubeloom.pipeline.readers",
    "open_grids": "cubeloom.pipeline.readers.sentinel2_grids",
    "write_scene": "cubeloom.pipeline.engine",
    "validate_scene": "cubeloom.pipeline.scene",
    "mask": "cubeloom.pipeline.functions",
    "pair": "cubeloom.pipeline.functions",
    "destripe": "cubeloom.pipeline.functions",
    "resample_bands": "cubeloom.pipeline.functions",
    "select_bands": "cubeloom.pipeline.functions",
    "denoise": "cubeloom.pipeline.functions",
    "sharpen": "cubeloom.pipeline.functions",
    "superres": "cubeloom.pipeline.functions",
    "texture": "cubeloom.pipeline.functions",
    "fuse": "cubeloom.pipeline.functions",
    "despeckle": "cubeloom.pipeline.functions",
    "to_db": "cubeloom.pipeline.functions",
    "classify": "cubeloom.pipeline.functions",
    "embed": "cubeloom.pipeline.functions",
    "indices": "cubeloom.pipeline.functions",
    "fit_head": "cubeloom.workflows.train.fit_head",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    if name not in _HOMES:
        raise AttributeError(f"module 'cubeloom' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
