"""What a recipe of kind `denoiser` may say."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .loop_part import Count, Fraction, Positive, StartPart, weights_beside
from .noisy import TRAINING_NOISES


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CubeFile(_Part):
    """A cube that counts as clean.

    Attributes:
        path: a product, store, raster with wavelengths, or MATLAB file; relative to the recipe.
        key: variable of the scene or array of the MATLAB file; by default the scene's subject, the array
            with the most bands.
        shape: height and width of the image, for a MATLAB array `(band, pixel)`.
        options: further options of `open_scene`, such as `scale`.
        project: keep the signal subspace alone, so that the cube's own noise is less.
        weight: how often it is drawn, relative to the other files.
    """

    path: Path
    key: str | None = None
    shape: tuple[Count, Count] | None = None
    options: dict[str, str] = Field(default_factory=dict)
    project: bool = False
    weight: Positive = 1.0

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, data: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        return {"path": data} if isinstance(data, str) else data


def cubes_beside(cubes: Iterable[CubeFile], folder: Path) -> tuple[CubeFile, ...]:
    """Cubes by absolute paths, where they were given relative to `folder`."""
    return tuple(cube.model_copy(update={"path": folder / cube.path}) for cube in cubes)


def shared_cubes(learnt: Iterable[CubeFile], validated: Iterable[CubeFile]) -> Iterator[str]:
    """What is wrong where a recipe is judged by what it learns from."""
    if shared := {cube.path for cube in learnt} & {cube.path for cube in validated}:
        yield f"{', '.join(sorted(map(str, shared)))} is both learnt from and validated on; leave it in one place"


class SimulatedScenes(_Part):
    """Scenes simulated without noise.

    Attributes:
        count: how many, over all kinds of landscape.
        height: px.
        width: px.
        seed: of the first.
        weight: how often any of them is drawn, relative to a file of weight 1.
    """

    count: Count = 8
    height: Annotated[int, Field(ge=32, le=2048)] = 192
    width: Annotated[int, Field(ge=32, le=2048)] = 192
    seed: int = 1000
    weight: Positive = 1.0


class ImageFiles(_Part):
    """A multispectral image whose spatial structure is borrowed.

    Attributes:
        files: rasters of the same area; those of finer grids are averaged to the coarsest.
        bands: numbers of the bands to read of each file; all where empty.
    """

    files: Annotated[tuple[Path, ...], Field(min_length=1)]
    bands: tuple[Count, ...] = ()


Span = tuple[Count, Count]


class MixedImages(_Part):
    """Cubes mixed anew for every scene: maps made of real images, spectra drawn at random.

    Attributes:
        images: where the maps come from.
        weight: how often they are drawn, relative to a file of weight 1.
        size_px: least and largest edge of a cube.
        cube_bands: least and largest number of bands.
        features: least and largest number of maps, each with a spectrum.
    """

    images: Annotated[tuple[ImageFiles, ...], Field(min_length=1)]
    weight: Positive = 1.0
    size_px: Span = (80, 128)
    cube_bands: Span = (90, 224)
    features: Span = (4, 27)

    def beside(self, folder: Path) -> "MixedImages":
        """The same with paths relative to `folder`."""
        moved = [
            image.model_copy(update={"files": tuple(folder / path for path in image.files)}) for image in self.images
        ]
        return self.model_copy(update={"images": tuple(moved)})

    @model_validator(mode="after")
    def _spans_ascend(self) -> Self:
        for name in ("size_px", "cube_bands", "features"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is a range from low to high; found {[low, high]}")
        if 2 * self.cube_bands[1] > self.size_px[0] ** 2:
            raise ValueError(
                f"cubes of {self.size_px[0]} px are too small for the subspace of {self.cube_bands[1]} bands"
            )
        return self


class Pool(_Part):
    """Noisy scenes from which crops of component images are taken (transform `eigenimages`).

    Attributes:
        size: how many are kept.
        renew_every: steps after which the oldest makes room for a new one.
        scene_px: each is made of a random square of this size; of the whole cube where None.
        process: make them in a process of their own, ahead of training.
    """

    size: Count = 64
    renew_every: Count = 8
    scene_px: Annotated[int, Field(ge=16)] | None = None
    process: bool = True


class Validation(_Part):
    """What training is judged by: the same cubes with the same noise every time.

    Attributes:
        cubes: files that training does not see.
        scenes: simulated scenes, of other seeds than those to learn from.
        noise: kinds of noise, each on every cube.
        every: steps from one validation to the next.
        px: edge of the middle of each cube that the network sees.
        seed: of the noise.
    """

    cubes: tuple[CubeFile, ...] = ()
    scenes: SimulatedScenes | None = None
    noise: tuple[str, ...] = ("gaussian50", "noniid", "stripe", "deadline", "impulse", "mixture")
    every: Count = 1000
    px: Annotated[int, Field(ge=16)] = 64
    seed: int = 12345


class About(_Part):
    """What the card says that training cannot know.

    Attributes:
        licence: of the weights.
        sensor: whose scenes they are for.
        wavelengths_nm: range trained on.
        variable: what a cube must hold; anything where None.
        units: of that variable.
        tile: edge of the tiles at inference, px.
        halo: overlap of the tiles, px.
    """

    licence: str = "Apache-2.0"
    sensor: str | None = None
    wavelengths_nm: tuple[Positive, Positive] | None = None
    variable: str | None = None
    units: str | None = None
    tile: Count = 128
    halo: Annotated[int, Field(ge=0)] = 16


class DenoiserRecipe(StartPart):
    """How to train a denoising network; the fields of the loop are those of `LoopPart`.

    Attributes:
        model: family, such as `hsdt_s`.
        settings: arguments of the family.
        weights: start from these instead of random ones.
        transform: what the network sees. `bands`: consecutive bands of a cube in [0, 1]. `eigenimages`: component
            images of a noisy scene's signal subspace, in units of its noise.
        bands: how many bands or, at most, components it sees at once.
        rank: of the subspace, as in the `denoise` stage.
        cubes: clean cubes to learn from.
        scenes: simulated ones.
        mixtures: cubes mixed from images, for `eigenimages`.
        subset: chance that a scene takes only the bands from the first to the last third of a cube's, at random ends.
        scales: learn from the cubes and from their averages over squares of so many pixels.
        noise: kinds of noise and how often each is drawn.
        correlated: chance that noise is resampled by a part of a pixel, as it is in a product that was rectified.
        strength: range of the noise level that the network is told; beyond 1 to 1 it learns to take other strengths.
        dihedral: turn and mirror the cubes `before` noise is added, so that columns stay columns, or the patches
            `after`; `none` of both.
        reverse: also the order of bands, for `bands`; for `eigenimages` the sign of each component.
        patch_px: edge of the patches; of several one is drawn for each step.
        batch: patches a step.
        voxels: at most so many values of one channel a step, so that steps of many components, or large patches,
            take about as long as others; `batch` then bounds the patches.
        loss: of the correction.
        ema: decay of the moving average of the weights, which is what is saved; 0 for none.
        init: of convolutions: `xavier` (normal), as the authors of HSDT advise, or torch's `default`.
        norm_momentum: of batch normalisation.
        freeze_norm: share of the steps after which batch statistics are held.
    """

    kind: Literal["denoiser"]
    model: str
    settings: dict[str, Any] = Field(default_factory=dict)
    transform: Literal["bands", "eigenimages"] = "eigenimages"
    bands: Annotated[int, Field(ge=2)] = 31
    rank: Literal["auto", "hysime"] | Count = "auto"
    cubes: tuple[CubeFile, ...] = ()
    scenes: SimulatedScenes | None = None
    mixtures: MixedImages | None = None
    subset: Fraction = 0.0
    scales: tuple[Count, ...] = (1,)
    noise: Annotated[dict[str, Positive], Field(min_length=1)]
    correlated: Fraction = 0.0
    strength: tuple[Positive, Positive] = (1.0, 1.0)
    dihedral: Literal["before", "after", "none"] = "after"
    reverse: bool = True
    patch_px: Annotated[tuple[Annotated[int, Field(ge=8)], ...], Field(min_length=1)] = (32,)
    batch: Count = 8
    voxels: Count | None = None
    loss: Literal["mse", "l1", "charbonnier"] = "charbonnier"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    init: Literal["xavier", "default"] = "xavier"
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    freeze_norm: Fraction = 1.0
    pool: Pool = Pool()
    validation: Validation = Validation()
    about: About = About()

    @model_validator(mode="before")
    @classmethod
    def _one_patch_size(cls, data: Any) -> Any:  # noqa: ANN401
        if isinstance(data, dict) and isinstance(data.get("patch_px"), int):
            return {**data, "patch_px": (data["patch_px"],)}
        return data

    def _problems(self) -> Iterator[str]:
        """What does not fit together."""
        if not isinstance(self.settings.get("in_channels", 1), int):
            yield f"settings.in_channels is {self.settings['in_channels']!r}; expected a number of channels"
        if not self.cubes and not self.scenes and not self.mixtures:
            yield "nothing to learn from: give cubes, scenes to simulate, or images to mix"
        unknown = sorted({*self.noise, *self.validation.noise} - set(TRAINING_NOISES))
        if unknown:
            yield f"noise {', '.join(unknown)} is unknown; expected some of {', '.join(TRAINING_NOISES)}"
        if self.strength[0] > self.strength[1]:
            yield f"strength is a range from low to high; found {list(self.strength)}"
        if self.transform == "bands" and (self.strength != (1.0, 1.0) or self.mixtures or self.subset):
            yield "strength, mixtures and subset are for transform eigenimages; leave them out"
        if self.transform == "eigenimages" and self.channels != 2:
            yield "transform eigenimages tells the network the noise level: settings.in_channels must be 2"
        if self.pool.scene_px is not None and self.pool.scene_px < max(self.patch_px):
            yield f"pool.scene_px {self.pool.scene_px} is less than a patch of {max(self.patch_px)} px"
        if self.mixtures and self.mixtures.size_px[0] < max(self.patch_px):
            yield f"mixtures.size_px from {self.mixtures.size_px[0]} is less than a patch of {max(self.patch_px)} px"
        yield from shared_cubes(self.cubes, self.validation.cubes)

    def patches(self, bands: int, px: int) -> int:
        """How many patches of so many bands or components and so many pixels make a batch.

        Not a single one because of `voxels`: on a CPU torch takes a slow convolution for a batch of one small patch,
        and the step then lasts longer than with two.
        """
        return self.batch if self.voxels is None else min(max(self.voxels // (bands * px**2), 2), self.batch)

    @property
    def channels(self) -> int:
        """Inputs of the network: 2 where it is told the noise level."""
        told = 2 if self.transform == "eigenimages" else 1
        return int(self.settings.get("in_channels", told))

    def beside(self, folder: Path) -> "DenoiserRecipe":
        """The recipe with absolute paths, where those it was written with are relative to `folder`."""
        folder = folder.resolve()
        validation = self.validation.model_copy(update={"cubes": cubes_beside(self.validation.cubes, folder)})
        mixtures = self.mixtures and self.mixtures.beside(folder)
        weights = weights_beside(self.weights, folder)
        cubes = cubes_beside(self.cubes, folder)
        update = {"cubes": cubes, "validation": validation, "mixtures": mixtures, "weights": weights}
        return self.model_copy(update=update)
