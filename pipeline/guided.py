"""A scene with its guides: scenes of other sensors, brought onto its grid, that stages look at beside it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from .encoding import Array, Packed
from .grids import Shape, Window
from .readers.base import Source
from .regrid import RegriddedSource
from .scene import SceneSpec


@dataclass(frozen=True, eq=False)
class GuidedSource:
    """A Source with the Sources of its guides.

    Attributes:
        source: the scene itself; it is read as if it stood alone.
        guides: scenes on its grid, or one a whole number of times finer, by name.
    """

    source: Source
    guides: Mapping[str, RegriddedSource]

    @cached_property
    def spec(self) -> SceneSpec:
        """The scene without its pixels, with its guides without theirs."""
        guides = {name: guide.spec for name, guide in self.guides.items()}
        return replace(self.source.spec, guides={**self.source.spec.guides, **guides})

    @property
    def block_shape(self) -> Shape:
        """That of the scene."""
        return self.source.block_shape

    @property
    def exact(self) -> bool:
        """Whether the scene is."""
        return self.source.exact

    def read(self, name: str, window: Window, bands: slice | None = None, out: Array | None = None) -> Array | Packed:
        """Pixels of one variable of the scene."""
        return self.source.read(name, window, bands, out)

    def fingerprint(self) -> str:
        """Digest of the content of all files, of the guides too."""
        return content_of_all(self.source.fingerprint(), {n: guide.fingerprint() for n, guide in self.guides.items()})


def guides_of(source: Source) -> Mapping[str, RegriddedSource]:
    """The guides that a source comes with."""
    return source.guides if isinstance(source, GuidedSource) else {}


def with_guides(source: Source, guides: Mapping[str, RegriddedSource]) -> Source:
    """A source with these guides beside those that it has."""
    if not guides:
        return source
    inner = source.source if isinstance(source, GuidedSource) else source
    return GuidedSource(inner, {**guides_of(source), **guides})


def content_of_all(scene: str, guides: Mapping[str, str]) -> str:
    """Digest of the content of a scene and its guides, from that of each."""
    if not guides:
        return scene
    lines = [scene, *(f"{name}={content}" for name, content in sorted(guides.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
