"""Stages: one a file, registered by name."""

from .base import NO_STATS, Stage, Stats, add_stats, explain, register, stage_class, stage_names
from .classify import Classify
from .denoise import Denoise
from .destripe import Destripe
from .embed import Embed
from .indices import Indices
from .mask import Mask
from .resample_bands import ResampleBands
from .select_bands import SelectBands
from .superres import Superres
from .texture import Texture

__all__ = [
    "NO_STATS",
    "Classify",
    "Denoise",
    "Destripe",
    "Embed",
    "Indices",
    "Mask",
    "ResampleBands",
    "SelectBands",
    "Stage",
    "Stats",
    "Superres",
    "Texture",
    "add_stats",
    "explain",
    "register",
    "stage_class",
    "stage_names",
]
