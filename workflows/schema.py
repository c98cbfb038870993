"""Workflows: YAML files that name stages and their parameters."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cubeloom.catalogs.items import CatalogItem
from cubeloom.errors import ConfigError
from cubeloom.pipeline.scene import SceneSpec
from cubeloom.pipeline.stages import Pair, Stage, explain
from cubeloom.pipeline.stages.base import Step, stage_of
from cubeloom.untrusted import load_yaml, read_yaml


class Workflow(BaseModel):
    """A chain of stages, and the scenes it takes.

    Attributes:
        name: names the products; letters, digits, `_` and `-`.
        sensors: sensors it takes, `Sentinel-2` for all of that series; any where empty.
        levels: processing levels it takes; any where empty.
        open: options for `open_scene`, such as `detector: vnir` for EnMAP L1B, or `grid: 20m` for Sentinel-2.
        steps: stages in order, each a name or `{name: {parameter: value}}`.
        publish: variables to keep; by default all but cubes that a later step replaced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    description: str = ""
    sensors: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    open: Mapping[str, str] = Field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    publish: tuple[str, ...] | None = None

    @field_validator("open", mode="before")
    @classmethod
    def _as_text(cls, options: object) -> object:
        """Numbers as readers take them: YAML reads the -1000 of `offset: -1000` as one."""
        if not isinstance(options, Mapping):
            return options
        return {key: str(value) if type(value) in (int, float) else value for key, value in options.items()}

    def stages(self) -> list[Stage]:
        """The stages of the steps.

        Raises:
            ConfigError: an unknown stage or parameter, or a wrong value; names the step and the nearest known name.
        """
        return [stage_of(step, f"step {number}") for number, step in enumerate(self.steps, 1)]

    def require(self, spec: SceneSpec) -> None:
        """Check that the workflow takes a scene.

        Raises:
            ConfigError: it does not; says what the scene is and what was expected.
        """
        for kind, found, allowed, taken in (
            ("sensor", spec.sensor, self.sensors, of_sensors(spec.sensor, self.sensors)),
            ("level", spec.processing_level, self.levels, spec.processing_level in self.levels),
        ):
            if allowed and not taken:
                raise ConfigError(
                    f"{spec.scene_id}: workflow {self.name} takes {kind} {' or '.join(allowed)}, the scene is {found}"
                )

    def of_its_sensors(self, items: Sequence[CatalogItem]) -> list[CatalogItem]:
        """The items of a catalog of several sensors that the workflow takes, for scenes or for their guides."""
        pairs = [stage for stage in self.stages() if isinstance(stage, Pair)]
        if not all(pair.sensors for pair in pairs):
            return list(items)
        guides = [sensor for pair in pairs for sensor in pair.sensors]
        return [item for item in items if self._is_of_its_sensors(item, guides)]

    def require_item(self, item: CatalogItem) -> None:
        """The same of a catalog's item, as far as it tells; a scene of another kind need not be opened for it.

        Raises:
            ConfigError: the workflow does not take it, or has no guide for it.
        """
        if item.no_guide:
            raise ConfigError(item.no_guide)
        if not self._is_of_its_sensors(item):
            raise ConfigError(
                f"{item.id}: workflow {self.name} takes sensor {' or '.join(self.sensors)}, the scene is of "
                f"{item.properties['platform']}"
            )

    def _is_of_its_sensors(self, item: CatalogItem, others: Sequence[str] = ()) -> bool:
        told = str(item.properties.get("platform") or "").lower()
        taken = [sensor.lower() for sensor in (*self.sensors, *others)]
        return not (self.sensors and told) or of_sensors(told, taken)

    def digest(self) -> str:
        """Hex digest of what the workflow does to a scene.

        Its name, and which scenes it takes, do not count; a model counts by its content, wherever it lies.

        Raises:
            ModelError: a model that a step names cannot be read.
        """
        steps = [stage.fingerprint() for stage in self.stages() if not stage.skipped]
        parts = {"open": dict(self.open), "publish": self.publish, "steps": steps}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def of_sensors(sensor: str, allowed: Sequence[str]) -> bool:
    """Whether a sensor is one of those, or a unit of such a series: `Sentinel-2A` is of `Sentinel-2`."""
    return sensor in allowed or (
        sensor[-1:] in tuple("ABCDabcd") and sensor[-2:-1].isdigit() and sensor[:-1] in allowed
    )


def load_workflow(name: str, settings: Sequence[str] = ()) -> Workflow:
    """A workflow from a file, or one of the library by name.

    Args:
        name: path of a YAML file, or the name of a workflow that comes with Cubeloom.
        settings: `STEP.PARAMETER=VALUE` changes, values in YAML; `open.NAME=VALUE` for how scenes are opened.

    Raises:
        ConfigError: there is no such workflow, or it is wrong; says where and what is expected.
    """
    data, origin = _workflow_data(name)
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected a mapping with name and steps, found {type(data).__name__}")
    try:
        workflow = Workflow.model_validate(data)
        if settings:
            for setting in settings:
                _apply_setting(data, setting, origin)
            workflow = Workflow.model_validate(data)
        workflow.stages()
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, Workflow)}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return workflow


_RECIPES = ("train_", "pretrain_", "tune_")
"""How the names of the library's recipes begin; `cubeloom train` takes these."""


def library() -> list[str]:
    """Names of the workflows that come with Cubeloom."""
    folder = files("cubeloom.workflows") / "library"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if _is_workflow(entry.name))


def _is_workflow(name: str) -> bool:
    return name.endswith(".yaml") and not name.startswith(_RECIPES)


def _workflow_data(name: str) -> tuple[Any, str]:
    """What a workflow's file holds, and how messages call it."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        if not path.is_file():
            raise ConfigError(f"{path}: no such workflow file")
        return read_yaml(path), str(path)
    if name not in library():
        near = difflib.get_close_matches(name, library(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"unknown workflow {name!r}{hint} Known: {', '.join(library())}; or give a .yaml file")
    entry = files("cubeloom.workflows") / "library" / f"{name}.yaml"
    return load_yaml(entry.read_text(encoding="utf-8"), f"workflow {name}"), f"workflow {name}"


def _apply_setting(data: dict[str, Any], setting: str, origin: str) -> None:
    """Change one parameter of one step of a workflow that was read."""
    target, equals, value = setting.partition("=")
    stage, dot, parameter = target.partition(".")
    if not (equals and dot):
        raise ConfigError(f"--set {setting!r}: expected STEP.PARAMETER=VALUE")
    read = load_yaml(value, f"--set {setting}")
    if stage == "open":
        data["open"] = {**(data.get("open") or {}), parameter: read}
        return
    steps = data.get("steps", [])
    for position, step in enumerate(steps):
        name = step if isinstance(step, str) else next(iter(step), None)
        if name == stage:
            given = {} if isinstance(step, str) else step[name] or {}
            steps[position] = {stage: {**given, parameter: read}}
            return
    raise ConfigError(f"--set {setting!r}: {origin} has no step {stage!r}")
