"""The methods an evaluation compares, each run as its users run it: through `cubeloom.denoise` on a Scene."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cubeloom.errors import ConfigError

from .cubes import CleanCube
from .hymixde import hymixde
from .methods import digest_of, label, listed, network_of

Float32Array = npt.NDArray[np.float32]


OUTLIERS = "+outliers"
"""At the end of a method's name: tell outliers from noise."""


@dataclass(frozen=True)
class Method:
    """One column of the tables.

    Attributes:
        name: as the user wrote it.
        what: in words.
        run: denoised cube of a noisy one, both `(band, y, x)`.
        clamped: whether the result is clamped to [0, 1], as the protocol does with what a denoiser gives.
        parameters: those of the `denoise` stage; empty where it is not that stage.
    """

    name: str
    what: str
    run: Callable[[CleanCube, Float32Array], Float32Array]
    clamped: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name for tables and figures, in which a file of weights stands without its folder."""
        return label(self.name)

    def describe(self) -> dict[str, Any]:
        """What there is to say of it, for JSON; for a network with the digest of its weights where they load."""
        return {"name": self.name, "what": self.what, "parameters": self.parameters, **digest_of(self.parameters)}


def parse_methods(text: str) -> list[Method]:
    """Methods from `noisy,subspace,hymixde,network:NAME[@WEIGHTS]`, the stage's also as `subspace+outliers`.

    Raises:
        ConfigError: an unknown method, one without its model, one that comes twice, or none.
    """
    return [_method(name) for name in listed(text, ("noisy", "subspace", "hymixde"))]


def _method(name: str) -> Method:
    if name == "noisy":
        return Method(name, "the noisy input, not clamped", lambda _, noisy: noisy, clamped=False)
    if name == "hymixde":
        return Method(name, "mixed-noise baseline after L1HyMixDe", lambda clean, noisy: hymixde(noisy, clean.valid))
    start = name.removesuffix(OUTLIERS)
    extra = {"outliers": True} if start != name else {}
    what = ", outliers left out" if extra else ""
    if start == "subspace":
        return _stage(name, f"the denoise stage, subspace and wavelets{what}", {"method": "subspace", **extra})
    kind, _, model = start.partition(":")
    network = network_of(model)
    if kind != "network" or "model" not in network:
        raise ConfigError(
            f"--methods: {name!r}; expected noisy, subspace, hymixde or network:NAME[@WEIGHTS], subspace and network "
            f"perhaps with {OUTLIERS} at the end"
        )
    what = f"the denoise stage, network {network['model']}{what}"
    return _stage(name, what, {"method": "network", **network, **extra})


def _stage(name: str, what: str, parameters: dict[str, Any]) -> Method:
    def run(clean: CleanCube, noisy: Float32Array) -> Float32Array:
        from cubeloom.pipeline.functions import denoise

        return np.asarray(denoise(clean.scene(noisy), **parameters)["denoised"].values)

    return Method(name, what, run, parameters=parameters)
