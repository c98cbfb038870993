"""The stage contract and the registry of stages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from cubeloom.errors import ConfigError

if TYPE_CHECKING:
    from cubeloom.pipeline.blocks import Block
    from cubeloom.pipeline.encoding import Packed
    from cubeloom.pipeline.regrid import Shift
    from cubeloom.pipeline.scene import SceneSpec
    from cubeloom.pipeline.tiles import Inferred, Tiling

Stats = Mapping[str, npt.NDArray[Any]]
Fact = float | int | str
Step = str | dict[str, dict[str, Any] | None]
"""A stage as workflows and recipes write it: its name, or its name with parameters."""

NO_STATS: Stats = {}


class Stage(BaseModel):
    """One step over a Scene: parameters, and pure functions of metadata and of blocks. No Dask, no Zarr.

    A subclass is registered once by name. It says what it does to the Scene's metadata (`plan`) and to the pixels of
    a block (`apply`). One that needs numbers of the whole scene first says in how many `passes`; each pass sums what
    `measure` gives for every block, and `settle` turns the sums into what the next pass, and `apply`, receive.

    One that runs a network says in which `tiling`, and `infer` computes a group of its tiles, each tile once. `apply`
    then finds the blended images under `cubeloom.pipeline.blocks.PREDICTION` in its block.

    One that looks at scenes of other sensors names them in `guides`, and finds each in its blocks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    """Part of a product's identity: raise it when the numbers that the stage makes change."""
    work_cubes: ClassVar[float] = 1.0
    """Float32 copies of the input cube that `apply` and `measure` hold at their peak, beside input and output."""

    @property
    def passes(self) -> int:
        """How many statistics passes the stage takes."""
        return 0

    @property
    def skipped(self) -> str:
        """Why the step does nothing with these parameters; empty where it does something."""
        return ""

    @property
    def guides(self) -> tuple[str, ...]:
        """Names of the guides that the stage needs.

        `plan` finds their description in `spec.guides`; `measure`, `infer` and `apply` their pixels in `Block.guides`.
        A guide is read when it is first looked at.
        """
        return ()

    def plan(self, spec: SceneSpec) -> SceneSpec:
        """The Scene that `apply` makes of a Scene `spec`.

        Raises:
            InputError: the stage cannot take such a scene; says why.
        """
        raise NotImplementedError

    def halo(self, spec: SceneSpec) -> int:
        """Pixels beyond its window, px of the input grid, that a block's inner pixels depend on."""
        return 0

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Partial sums of pass `number` (0-based) over `block`, which comes without halo unless `halo` says so.

        Args:
            block: pixels of the core window plus `halo`; count those of `block.core` only.
            stats: what the passes before settled to.
            number: which pass this is.
        """
        raise NotImplementedError

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """What the next pass and `apply` receive, from the sums of pass `number` over the whole scene."""
        raise NotImplementedError

    def tiling(self, spec: SceneSpec) -> Tiling | None:
        """How the stage's network cuts the scene; None where the stage runs none."""
        return None

    def tile_bytes(self, spec: SceneSpec) -> int:
        """Memory that `infer` takes at its peak for a group of tiles, beside the blocks it is given."""
        return 0

    def weight_bytes(self) -> int:
        """Bytes of the network's weights, which a process holds once, and twice while it loads them."""
        return 0

    def smaller(self, spec: SceneSpec) -> Iterator[Stage]:
        """This stage with ever smaller tiles for its network; nothing where their size is the network's own."""
        return iter(())

    def infer(self, tiles: Sequence[Block], stats: Stats, threads: int = 1) -> Inferred:
        """What the network gives for a group of tiles of its lattice, each a block without halo, after all passes.

        It is the same for any number of `threads`, which it may use while other workers have nothing to do.
        """
        raise NotImplementedError

    def apply(self, block: Block, stats: Stats) -> Mapping[str, npt.NDArray[Any] | Packed]:
        """The new or changed variables of a block, over the block's whole window (the caller crops the halo).

        A stage whose `plan` gives a grid `scale` times finer returns arrays of that many more pixels. One that leaves
        the numbers of a packed variable as they are may return them packed, so that nothing is rounded twice.
        """
        raise NotImplementedError

    def shifts(self, stats: Stats) -> Mapping[str, Shift]:
        """How far guides lie from the scene, px of its native grid down and right; later steps read them there."""
        return {}

    def facts(self, stats: Stats, spec: SceneSpec) -> Mapping[str, Fact]:
        """What the step found out of the whole scene, for record, report and catalog; `stats` is what it settled to."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """What makes this step's output what it is: name, version, parameters, and digests of the files it reads."""
        return {"stage": self.name, "version": self.version, **self.model_dump(mode="json")}


_STAGES: dict[str, type[Stage]] = {}
S = TypeVar("S", bound=type[Stage])


def register(name: str) -> Callable[[S], S]:
    """Class decorator: make a stage known under `name`; a name that is taken is an error."""

    def add(cls: S) -> S:
        if name in _STAGES:
            raise ValueError(f"stage {name!r} is registered twice: {_STAGES[name].__module__} and {cls.__module__}")
        cls.name = name
        _STAGES[name] = cls
        return cls

    return add


def stage_class(name: str) -> type[Stage]:
    """The stage registered under `name`.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in _STAGES:
        near = difflib.get_close_matches(name, _STAGES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"unknown stage {name!r}{hint} Known stages: {', '.join(sorted(_STAGES))}")
    return _STAGES[name]


def stage_of(step: Step, where: str) -> Stage:
    """The stage that a step asks for.

    Args:
        step: as it is written.
        where: it stands, for messages.

    Raises:
        ConfigError: an unknown stage or parameter, or a wrong value; names the nearest known name.
    """
    if isinstance(step, dict) and len(step) != 1:
        raise ConfigError(f"{where}: expected one stage, found {', '.join(step) or 'none'}; start each with a dash")
    name, given = (step, None) if isinstance(step, str) else next(iter(step.items()))
    cls = stage_class(name)
    try:
        return cls.model_validate(given or {})
    except ValidationError as error:
        raise ConfigError(f"{where} ({name}): {explain(error, cls)}") from None


def stage_names() -> list[str]:
    """Names of all registered stages."""
    return sorted(_STAGES)


def add_stats(total: Stats, part: Stats) -> Stats:
    """Sum of two partial statistics; the empty one is neutral."""
    if not total:
        return part
    return {key: np.add(total[key], part[key]) for key in total}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A validation error in one line a problem; unknown keys come with the nearest known one."""
    lines = []
    for problem in error.errors():
        where = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, model.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"unknown key {where!r}{hint} (known: {', '.join(model.model_fields) or 'none'})")
        else:
            lines.append(f"{where}: {problem['msg']}, found {problem['input']!r}")
    return "; ".join(lines)
