"""Cubeloom: imaging-spectrometer scenes from a catalog to analysis-ready Zarr.

The names below are imported when they are first used, so that `import cubeloom` stays quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "open_scene": "cubeloom.pipeline.readers",
    "write_scene": "cubeloom.pipeline.store",
    "validate_scene": "cubeloom.pipeline.scene",
    "mask": "cubeloom.pipeline.stages",
    "destripe": "cubeloom.pipeline.stages",
    "resample_bands": "cubeloom.pipeline.stages",
    "select_bands": "cubeloom.pipeline.stages",
    "denoise": "cubeloom.pipeline.stages",
    "superres": "cubeloom.pipeline.stages",
    "classify": "cubeloom.pipeline.stages",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute may be anything
    if name not in _HOMES:
        raise AttributeError(f"module 'cubeloom' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
