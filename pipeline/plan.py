"""What is known of a product before its first pixel is read: its variables, blocks, memory and identity."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cubeloom.errors import ConfigError

from .blocks import plan_chain
from .chunks import block_keys, laid_out
from .grids import CHUNK, Shape, Window, tile
from .memory import DEFAULT_MEMORY, fit, ingest_shape
from .readers.base import Source
from .scene import UNCERTAINTY, SceneSpec
from .stages.base import Stage
from .store import LAYOUT_VERSION


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is known of a product before its first pixel is read.

    Attributes:
        source: where the pixels come from.
        stages: the steps that do something, in order.
        specs: the Scene before the first step and after each one.
        measured: the root group with what the source delivers, where it is published as it is: such variables are
            written first, in blocks that suit the file, and the steps read them back from the store, whose chunks
            cost a fraction of the file's tiles and strips to decode again for every pass. None where a step changes
            them (bands were selected) or the store would round them, so that the steps must read the file.
        derived: what the steps add, one spec a group, of the published variables alone.
        edge: of the store's chunks, px.
        ingest_shape: height and width of a block that is written as it was read, px, whole chunks.
        block_shape: height and width of a block that goes through the steps, px of the source's grid, whole chunks.
        workers: block tasks at a time.
        tile_workers: groups of a network's tiles at a time.
        projected_bytes: memory that a process of the run will need at its peak.
        content: digest of the content of the input files.
        identity: hex digest of everything that decides the product's bytes.
    """

    source: Source
    stages: tuple[Stage, ...]
    specs: tuple[SceneSpec, ...]
    measured: SceneSpec | None
    derived: tuple[SceneSpec, ...]
    edge: int
    ingest_shape: Shape
    block_shape: Shape
    workers: int
    tile_workers: int
    projected_bytes: int
    content: str
    identity: str

    @property
    def groups(self) -> list[SceneSpec]:
        """What the store will hold, one spec a group, the native grid first."""
        by_group: dict[str, SceneSpec] = {}
        for spec in (*((self.measured,) if self.measured else ()), *self.derived):
            known = by_group.get(spec.group)
            by_group[spec.group] = replace(spec, variables={**known.variables, **spec.variables}) if known else spec
        return list(by_group.values())

    def missing(self, known: Mapping[str, str]) -> "Work":
        """The blocks some of whose chunks are not among the known ones."""
        ingest = _missing([self.measured] if self.measured else [], self._tiles(self.ingest_shape), known)
        return Work(ingest, _missing(self.derived, self._tiles(self.block_shape), known))

    @property
    def blocks(self) -> int:
        """How many block tasks the whole product takes."""
        work = self.missing({})
        return len(work.ingest) + len(work.steps)

    def _tiles(self, shape: Shape) -> list[Window]:
        return list(tile(self.source.spec.shape, shape))


@dataclass(frozen=True)
class Work:
    """Blocks to do: those that are written as they are read, and those that go through the steps."""

    ingest: list[Window]
    steps: list[Window]


def _missing(groups: Sequence[SceneSpec], windows: Sequence[Window], known: Mapping[str, str]) -> list[Window]:
    groups = [spec for spec in groups if spec.variables]
    return [window for window in windows if not set(block_keys(groups, window)) <= known.keys()]


def make_plan(
    source: Source,
    stages: Sequence[Stage],
    *,
    publish: Sequence[str] | None = None,
    workers: int = 1,
    memory: int = DEFAULT_MEMORY,
    together: bool = True,
    content: str = "",
    workflow: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a chain over a source.

    Args:
        source: an open source.
        stages: the steps; those that say `skipped` are left out.
        publish: names of the variables to keep beside those of the source; by default all but cubes that a later
            step has replaced.
        workers: block tasks at a time.
        memory: bytes that a process may use.
        together: whether all workers are threads of one process; else each is a process of its own.
        content: digest of the input files' content, where it is known; by default they are hashed.
        workflow: what the workflow itself adds to the product's identity.

    Raises:
        InputError: a step cannot take the scene.
        ConfigError: `publish` names what no step makes, or even the smallest block exceeds the memory.
    """
    active = tuple(stage for stage in stages if not stage.skipped)
    specs = tuple(plan_chain(source.spec, active))
    groups = laid_out(_published(specs, publish))
    edge = groups[0].chunk
    measured, derived = _divide(source.spec, groups) if source.exact or not active else (None, groups)
    ingest = ingest_shape(source, memory, edge)
    fitted = fit(source, active, specs, ingest, edge, workers, memory, together=together)
    content = content or source.fingerprint()
    identity = _identity(content, active, groups, workflow or {})
    return Plan(
        source=source,
        stages=active,
        specs=specs,
        measured=measured,
        derived=derived,
        edge=edge,
        ingest_shape=ingest,
        block_shape=fitted.block_shape,
        workers=workers,
        tile_workers=fitted.tile_workers,
        projected_bytes=fitted.projected_bytes,
        content=content,
        identity=identity,
    )


def _divide(spec: SceneSpec, groups: Sequence[SceneSpec]) -> tuple[SceneSpec | None, tuple[SceneSpec, ...]]:
    """What is published as the source delivers it, and what the steps make."""
    root = groups[0]
    if root.group or any(root.variables.get(name) is not variable for name, variable in spec.variables.items()):
        return None, tuple(groups)
    added = {name: variable for name, variable in root.variables.items() if name not in spec.variables}
    return replace(root, variables=spec.variables), (replace(root, variables=added), *groups[1:])


def _published(specs: Sequence[SceneSpec], publish: Sequence[str] | None) -> tuple[SceneSpec, ...]:
    """The last spec of every group, with the variables that are to be kept, and the guides to publish."""
    finals = {spec.group: spec for spec in specs}
    made = {name for spec in finals.values() for name in spec.variables}
    if publish is not None and (unknown := sorted(set(publish) - made)):
        raise ConfigError(f"publish names {', '.join(unknown)}; the steps make {', '.join(sorted(made))}")
    groups = []
    for spec in finals.values():
        kept = {name: v for name, v in spec.variables.items() if _is_kept(name, spec, publish)}
        if kept:
            subject = spec.subject if spec.subject in kept else spec.measurement
            groups.append(replace(spec, variables=kept, subject=subject))
    guides = [guide for guide in specs[-1].guides.values() if guide.group]
    if taken := [guide.group for guide in guides if guide.group in finals]:
        raise ConfigError(f"{specs[0].scene_id}: a step makes a group {taken[0]!r}; give the guide another name")
    return (*groups, *guides)


def _is_kept(name: str, spec: SceneSpec, publish: Sequence[str] | None) -> bool:
    variable = spec.variables[name]
    if name == spec.measurement or name in ("quality", "defect", UNCERTAINTY):
        return True
    if publish is not None:
        return name in publish
    return not variable.is_cube or name == spec.subject


def _identity(content: str, stages: Sequence[Stage], groups: Sequence[SceneSpec], workflow: Mapping[str, Any]) -> str:
    parts: dict[str, Any] = {
        "layout": LAYOUT_VERSION,
        "source": content,
        "stages": [stage.fingerprint() for stage in stages],
        "variables": {spec.group: sorted(spec.variables) for spec in groups},
        "workflow": workflow,
    }
    if groups[0].chunk != CHUNK:
        parts["chunk"] = groups[0].chunk
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
