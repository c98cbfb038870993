"""Readers: one product family a file. `open_scene` finds the right one."""

from .base import Source, to_scene
from .open import open_scene, open_source

__all__ = ["Source", "open_scene", "open_source", "to_scene"]
