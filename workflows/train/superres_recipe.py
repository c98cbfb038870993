"""What a recipe of kind `superres` may say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .denoiser_recipe import About, CubeFile, SimulatedScenes, cubes_beside, shared_cubes
from .loop_part import Count, Fraction, StartPart, weights_beside

Transfer = Annotated[float, Field(gt=0, lt=1)]


class SimulatedGround(BaseModel):
    """Simulated ground, sampled on the fine grid: the truth of which EnMAP's pixels of 30 m are made.

    What the network sees of it has the noise of the simulated detectors. The landscapes are taken in turn.

    Attributes:
        count: of pieces.
        edge: of what the network sees, px of 30 m.
        seed: of the first.
        weight: how often any of it is drawn, relative to a file of weight 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Count = 16
    edge: Annotated[int, Field(ge=32, le=512)] = 80
    seed: int = 3000
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class SuperresValidation(BaseModel):
    """What training is judged by: cubes degraded the same way every time.

    Attributes:
        cubes: files that training does not see.
        scenes: simulated scenes, of other seeds than those to learn from.
        mtf: modulation transfer at the coarse grid's Nyquist frequency.
        every: steps from one validation to the next.
        px: edge of the middle of each fine cube that is judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cubes: tuple[CubeFile, ...] = ()
    scenes: SimulatedScenes | None = None
    mtf: Transfer = 0.3
    every: Count = 500
    px: Annotated[int, Field(ge=16)] = 96


class SuperresRecipe(StartPart):
    """How to train a network for super-resolution by Wald's protocol; the fields of the loop are those of `LoopPart`.

    A cube is the truth, and the network sees it degraded by the sensor's response in space to a grid as many times
    coarser as its answer is finer.

    Attributes:
        model: family, such as `essaformer_x2`.
        settings: arguments of the family but `bands`, which are those of the cubes.
        weights: start from these instead of random ones, with their bands' means and deviations; a `width` in settings
            that is a multiple of theirs widens them.
        cubes: to learn from; all of the same bands, by wavelength.
        scenes: simulated ones, without noise.
        ground: simulated ground whose truth lies on the grid finer than EnMAP's.
        mtf: range of the modulation transfer at the coarse grid's Nyquist frequency; drawn for each cube.
        noise: largest standard deviation of white noise that the network sees, in units of each band's; drawn for each
            patch, and never part of the truth.
        dihedral: turn and mirror the patches.
        blend: chance that a patch is of two places, some ranges of wavelength of either, so that the network does not
            take for granted which bands change together.
        patch_px: edge of what the network sees.
        batch: patches a step.
        loss: between the network's answer and the truth, both standardised.
        ema: decay of the moving average of the weights, which is what is saved; 0 for none.
        hold: share of the steps after which the attention takes its running means, where it has such.
    """

    kind: Literal["superres"]
    model: str = "essaformer_x2"
    settings: dict[str, Any] = Field(default_factory=dict)
    cubes: tuple[CubeFile, ...] = ()
    scenes: SimulatedScenes | None = None
    ground: SimulatedGround | None = None
    mtf: tuple[Transfer, Transfer] = (0.2, 0.4)
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    dihedral: bool = True
    blend: Fraction = 0.0
    patch_px: Annotated[int, Field(ge=4)] = 16
    batch: Count = 8
    loss: Literal["mse", "l1", "charbonnier"] = "l1"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    hold: Fraction = 0.75
    validation: SuperresValidation = SuperresValidation()
    about: About = About()

    def _problems(self) -> Iterator[str]:
        """What does not fit together."""
        if not self.cubes and not self.scenes and not self.ground:
            yield "nothing to learn from: give cubes, or scenes or ground to simulate"
        if "bands" in self.settings:
            yield "settings.bands: leave it out, the bands are those of the cubes"
        if self.mtf[0] > self.mtf[1]:
            yield f"mtf is a range from low to high; found {list(self.mtf)}"
        yield from shared_cubes(self.cubes, self.validation.cubes)

    def beside(self, folder: Path) -> "SuperresRecipe":
        """The recipe with absolute paths, where those it was written with are relative to `folder`."""
        folder = folder.resolve()
        validation = self.validation.model_copy(update={"cubes": cubes_beside(self.validation.cubes, folder)})
        cubes = cubes_beside(self.cubes, folder)
        update = {"cubes": cubes, "validation": validation, "weights": weights_beside(self.weights, folder)}
        return self.model_copy(update=update)
