"""Which scenes of a catalog go together: the guides of a workflow's `pair` steps."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from cubeloom.catalogs.items import CatalogItem
from cubeloom.catalogs.overlap import overlap
from cubeloom.errors import ConfigError
from cubeloom.pipeline.stages import Pair

from .schema import Workflow, of_sensors

_DAY = timedelta(days=1)


def pair_steps(workflow: Workflow) -> list[Pair]:
    """The steps of a workflow that take a second scene."""
    return [stage for stage in workflow.stages() if isinstance(stage, Pair)]


def paired(workflow: Workflow, items: Iterable[CatalogItem], others: Iterable[CatalogItem] = ()) -> list[CatalogItem]:
    """The scenes that a workflow is run on, each with its guides, or the reason why it has none.

    A guide is, of all items that a `pair` step takes and that are near enough in time and cover enough of the scene,
    the one that covers most of it in whole percent; of those that cover the same, the one nearest in time.

    Args:
        workflow: what is run; without a `pair` step all items stay as they are.
        items: scenes and guides. An item that only a `pair` step takes is no scene.
        others: further guides, which are no scenes whatever they are.
    """
    steps, items = pair_steps(workflow), list(items)
    if not steps:
        return items
    pool = list({item.id: item for item in (*others, *items)}.values())
    return [_with_guides(item, steps, pool) for item in items if not _is_guide_alone(item, workflow, steps)]


def _with_guides(scene: CatalogItem, steps: Sequence[Pair], pool: Sequence[CatalogItem]) -> CatalogItem:
    if scene.guides or scene.no_guide:
        return scene
    guides, missing = {}, []
    for step in steps:
        near = [item for item in pool if _is_of(item, step, scene)]
        fitting = [(covers, item) for item in near if (covers := _covers(scene, item, step)) >= step.min_overlap]
        if fitting:
            best = max(fitting, key=lambda found: (round(found[0], 2), -_apart(scene, found[1]), found[1].id))
            guides[step.guide] = best[1]
        else:
            missing.append(_reason(scene, step, near))
    return replace(scene, guides={} if missing else guides, no_guide="; ".join(missing))


def _is_guide_alone(item: CatalogItem, workflow: Workflow, steps: Sequence[Pair]) -> bool:
    """Whether an item is there for the others: some step asks for its like, and the workflow does not."""
    if item.guides or item.no_guide or not any(step.sensors and _is_of(item, step) for step in steps):
        return False
    if not workflow.sensors:
        return True
    try:
        workflow.require_item(item)
    except ConfigError:
        return True
    return False


def _is_of(item: CatalogItem, step: Pair, scene: CatalogItem | None = None) -> bool:
    """Whether a step takes an item for a guide, of a scene if there is one, apart from place and days."""
    level = str(item.properties.get("processing:level") or "")
    if scene is not None and (item.id == scene.id or not _is_when(item, step, scene)):
        return False
    if step.levels and level and level not in step.levels:
        return False
    if not step.sensors:
        return scene is not None and _sensor(item) != _sensor(scene)
    return of_sensors(_sensor(item), [sensor.lower() for sensor in step.sensors])


def _is_when(item: CatalogItem, step: Pair, scene: CatalogItem) -> bool:
    """Whether an item is of the side of a scene's time that a step asks for."""
    if step.when == "any":
        return True
    return item.datetime < scene.datetime if step.when == "earlier" else item.datetime > scene.datetime


def _sensor(item: CatalogItem) -> str:
    return str(item.properties.get("platform") or "").lower()


def _covers(scene: CatalogItem, guide: CatalogItem, step: Pair) -> float:
    """Share of a scene that a guide shows; less than nothing where it is too far off in time."""
    return overlap(scene, guide) if _apart(scene, guide) <= step.days else -1.0


def _apart(scene: CatalogItem, guide: CatalogItem) -> float:
    """Days between two scenes."""
    return abs(guide.datetime - scene.datetime) / _DAY


def _reason(scene: CatalogItem, step: Pair, near: Sequence[CatalogItem]) -> str:
    """Why a scene has no guide, with the nearest miss."""
    wanted = " or ".join(step.sensors) or "another sensor"
    wanted += "" if step.when == "any" else f" {step.when} than it"
    told = (
        f"{scene.id}: no {step.guide} to pair it with: no scene of {wanted} within {step.days:g} days covers "
        f"{step.min_overlap:.0%} of it"
    )
    if not near:
        return f"{told}; the catalog has none of {wanted}"
    best = max(near, key=lambda item: (overlap(scene, item) >= step.min_overlap, -_apart(scene, item)))
    return (
        f"{told}; the nearest of {len(near)} is {best.id}, {_apart(scene, best):.1f} days apart, covering "
        f"{overlap(scene, best):.0%}"
    )
