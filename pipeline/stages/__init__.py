"""Stages: one a file, registered by name."""

from .base import NO_STATS, Stage, Stats, add_stats, explain, register, stage_class, stage_names
from .classify import Classify
from .denoise import Denoise
from .despeckle import Despeckle
from .destripe import Destripe
from .embed import Embed
from .fuse import Fuse
from .gate import Gate
from .indices import Indices
from .mask import Mask
from .pair import Pair
from .resample_bands import ResampleBands
from .select_bands import SelectBands
from .sharpen import Sharpen
from .superres import Superres
from .texture import Texture
from .to_db import ToDb

__all__ = [
    "NO_STATS",
    "Classify",
    "Denoise",
    "Despeckle",
    "Destripe",
    "Embed",
    "Fuse",
    "Gate",
    "Indices",
    "Mask",
    "Pair",
    "ResampleBands",
    "SelectBands",
    "Sharpen",
    "Stage",
    "Stats",
    "Superres",
    "Texture",
    "ToDb",
    "add_stats",
    "explain",
    "register",
    "stage_class",
    "stage_names",
]
