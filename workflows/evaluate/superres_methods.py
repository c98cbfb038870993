"""The methods that an evaluation of super-resolution compares, each run as its users run it.

A method is a name with options: `NAME[:MODEL[@WEIGHTS]][+OPTION[=VALUE]...]`. `METHODS` says which stage a name stands
for, and whether it takes a guide; options are the stage's parameters and those of `Own`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cubeloom.errors import ConfigError
from cubeloom.pipeline.functions import denoise, sharpen, superres
from cubeloom.pipeline.stages import explain, stage_class
from cubeloom.pipeline.stages.sharpen import Sharpen
from cubeloom.pipeline.stages.sharpen_consistency import consistent
from cubeloom.pipeline.stages.sharpen_guide import Detail, Seen
from cubeloom.pipeline.stages.superres import refine

from .methods import digest_of, label, listed, network_of, parsed
from .superres_cases import Case
from .superres_grounds import GUIDES

Float32Array = npt.NDArray[np.float32]

ALONE = ("bicubic", "lanczos", "network")
GUIDED = {
    f"guided_{name}" if name in ALONE else name: name for name in get_args(Sharpen.model_fields["method"].annotation)
}
"""The methods of `sharpen`, whatever it has; one that is called as a method of `superres` says that it has a guide."""
METHODS: Mapping[str, tuple[str, dict[str, str]]] = {
    **{name: ("superres", {"method": name}) for name in ALONE},
    **{name: ("sharpen", {"method": method}) for name, method in GUIDED.items()},
}
"""The stage of every method, and the parameters that its name stands for."""

PROJECTED = 3
"""Rounds of back-projection, as many as `sharpen` takes by default."""


class Own(BaseModel):
    """Options that are not the stage's.

    Attributes:
        projected: rounds of back-projection of the product, `sharpen`'s last step without a guide; for `superres`.
        denoised: whether the scene is denoised before, by `denoise`'s subspace.
        guide: which bands of the guide are taken, of `GUIDES`; for `sharpen`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    projected: int = Field(default=0, ge=0, le=10)
    denoised: bool = False
    guide: str = "finest"

    @field_validator("guide")
    @classmethod
    def _is_known(cls, guide: str) -> str:
        if guide not in GUIDES:
            raise ValueError(f"expected one of {', '.join(GUIDES)}")
        return guide


@dataclass(frozen=True)
class SuperresMethod:
    """One row of the tables.

    Attributes:
        name: as the user wrote it.
        stage: `superres` or `sharpen`.
        parameters: of the stage.
        own: options beside them.
    """

    name: str
    stage: str
    parameters: Mapping[str, Any]
    own: Own

    @property
    def label(self) -> str:
        """The name for tables and figures."""
        return label(self.name)

    @property
    def guided(self) -> bool:
        """Whether it takes a guide."""
        return self.stage == "sharpen"

    def suits(self, case: Case) -> bool:
        """Whether the case has what the method takes."""
        return not self.guided or bool(case.guides)

    def run(self, case: Case) -> Float32Array:
        """The fine cube `(band, y, x)` of a case; NaN in bands that the method does not make.

        Raises:
            CubeloomError: the method cannot be used on this scene.
        """
        scene = case.scene
        if self.own.denoised:
            scene = denoise(scene, method="subspace")
            scene = scene.load()
        if self.guided:
            product = sharpen(scene, case.guides[self.own.guide], **{"mtf": case.mtf, **self.parameters})
        else:
            product = superres(scene, scale=case.scale, **self.parameters)
        made = np.asarray(product[product.attrs["subject"]].values, np.float32)
        return back_projected(scene, made, case, self.own.projected) if self.own.projected else made

    def describe(self) -> dict[str, Any]:
        """What there is to say of it, for JSON; for a network with the digest of its weights where they load."""
        described = {"name": self.name, "stage": self.stage, "parameters": dict(self.parameters)}
        return described | {"guided": self.guided, **self.own.model_dump(), **digest_of(self.parameters)}


def back_projected(scene: xr.Dataset, made: Float32Array, case: Case, rounds: int) -> Float32Array:
    """A product made to agree with what was measured, as `sharpen` makes its own, where no guide tells where edges are.

    Args:
        scene: what was measured.
        made: its fine cube, `(band, y, x)`; bands without values stay so.
        case: tells scale and modulation transfer.
        rounds: of back-projection.
    """
    there = np.flatnonzero(np.isfinite(made).any(axis=(1, 2)))
    cube = np.asarray(scene[scene.attrs["subject"]].values[there], np.float32)
    known = np.asarray(np.isfinite(cube).all(axis=0))
    blank = np.zeros((1, *made.shape[1:]), np.float32)
    alone = Seen(cube, known, blank, blank[:, :: case.scale, :: case.scale], case.scale)
    detail = Detail(np.nan_to_num(made[there] - refine(cube, known, case.scale)), np.eye(there.size))
    projected = made.copy()
    projected[there] = consistent(alone, detail, np.ones(1), case.mtf, rounds)
    return projected


def parse_superres_methods(text: str) -> list[SuperresMethod]:
    """Methods from `bicubic,bicubic+projected,network:MODEL[@WEIGHTS],gsa+rounds=6+guide=common+denoised`.

    Raises:
        ConfigError: an unknown method or option, a wrong value, a method that comes twice, or none.
    """
    return [_method(name) for name in listed(text, METHODS)]


def default_methods(scale: int) -> str:
    """Every kind at this scale, with the network where one is shipped; cubic convolution and network also projected."""
    from cubeloom.models.registry import list_models

    shipped = f"essaformer_x{scale}.enmap"
    there = shipped in {entry.name for entry in list_models()}
    network = [f"network:{shipped}", f"network:{shipped}+projected"] if there else []
    return ",".join(["bicubic", "bicubic+projected", "lanczos", *network, *GUIDED])


def _method(name: str) -> SuperresMethod:
    kind, model, given = parsed(name, METHODS, {"projected": str(PROJECTED)})
    stage, fixed = METHODS[kind]
    own = {key: given.pop(key) for key in Own.model_fields if key in given}
    parameters = {**fixed, **network_of(model), **given}
    cls = stage_class(stage)
    try:
        cls.model_validate(parameters)
    except ValidationError as error:
        raise ConfigError(f"--methods: {name}: {explain(error, cls)}") from None
    try:
        options = Own.model_validate(own)
    except ValidationError as error:
        raise ConfigError(f"--methods: {name}: {explain(error, Own)}") from None
    if stage == "sharpen" and options.projected:
        raise ConfigError(f"--methods: {name}: {kind} projects its products back by itself; say rounds=N")
    return SuperresMethod(name, stage, parameters, options)
