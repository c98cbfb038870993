"""Stores behind a network: finished products are pushed there, and read back as Scenes."""

from .base import Remote, open_remote
from .folders import RemoteFolder, open_folder

__all__ = ["Remote", "RemoteFolder", "open_folder", "open_remote"]
