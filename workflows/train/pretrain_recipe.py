"""What a recipe of kind `pretrain` may say: learning from images without labels, after SpectralEarth's recipes.

Braham et al. 2024 (arXiv 2408.08447) pretrain with MoCo-v2, DINO and MAE; the defaults are those of their experiments
where these make sense. Theirs that are not kept: a teacher of DINO whose momentum reaches 1 after a tenth of training
and that learns no more from there on, and MoCo's learning rate.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .loop_part import Count, Fraction, Positive, StartPart, weights_beside

Embedding = Literal["network", "map"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Decoder(_Part):
    """What ways to fill in what was taken away have in common.

    Attributes:
        mask_ratio: share of the tokens that are taken away.
        decoder_width: of the decoder's tokens.
        decoder_depth: its blocks.
        decoder_heads: of its attention.
    """

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9
    decoder_width: Annotated[int, Field(ge=16, multiple_of=4)] = 512
    decoder_depth: Count = 1
    decoder_heads: Count = 16

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is no multiple of decoder_heads {self.decoder_heads}")
        return self


class Mae(_Decoder):
    """Masked autoencoding (He et al., CVPR 2022): learn to fill in what was taken away. For vision transformers.

    Attributes:
        adapter: which pixels the spectral adapter sees: of the `whole` image, as the authors have it, or the `visible`
            ones alone, which takes a tenth of the time. Its features of a pixel are the same; while training, the
            statistics of its normalisations are then those of the visible pixels.
        components: foretell so many principal components of the images' spectra, each brought to a variance of 1; or,
            where None, a token's values, standardised over it, as the authors have it. Bands are so alike that three
            components hold nearly all of the variance of their values, hence of the error that is learnt from, and
            what tells materials apart lies mostly in the others.
    """

    name: Literal["mae"] = "mae"
    adapter: Literal["whole", "visible"] = "whole"
    components: Count | None = None

    views: ClassVar[int] = 1
    loop: ClassVar[dict[str, Any]] = {
        "steps": 324_000,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup": 0.0,
        "schedule": "cosine",
        "crop": (0.4, 1.0),
    }
    """Defaults of the recipe's other fields: 200 epochs of 415,153 locations."""


class Moco(_Part):
    """Momentum contrast, version 2 (Chen et al. 2020, arXiv 2003.04297): tell the views of one place from all others.

    Attributes:
        queue: places of former batches to tell from.
        momentum: by which the encoder of the keys follows.
        temperature: of the comparison.
        hidden: width of the projection's hidden layer.
        outputs: length of what is compared.
        embedding: what is compared: that of the `network`, of a vision transformer its class token, as the authors have
            it; or the mean of its last `map`, which the stage `embed` writes and which learns sooner.
    """

    name: Literal["moco"] = "moco"
    queue: Count = 32_768
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    temperature: Positive = 0.1
    hidden: Count = 2048
    outputs: Count = 128
    embedding: Embedding = "network"

    views: ClassVar[int] = 2
    loop: ClassVar[dict[str, Any]] = {
        "steps": 162_000,
        "learning_rate": 0.03,
        "weight_decay": 1e-4,
        "warmup": 0.0,
        "schedule": "multistep",
        "clip": None,
        "optimiser": "sgd",
        "crop": (0.08, 1.0),
    }
    """Of the recipe's other fields: 100 epochs; the learning rate is that of MoCo's authors for batches of 256."""


class Dino(_Part):
    """Self-distillation (Caron et al., ICCV 2021): foretell what a slower copy of the network makes of another view.

    Attributes:
        hidden: width of the head's two hidden layers.
        bottleneck: what they end in.
        outputs: of the last layer.
        momentum: by which the teacher follows at first; it rises to 1 in a half cosine over all steps.
        student_temperature: sharpens the student's outputs.
        teacher_temperature: from this at first to that after `teacher_warmup`.
        teacher_warmup: share of the steps.
        centre_momentum: of the running mean that is taken from the teacher's outputs.
        freeze_last: share of the steps, at the start, in which the last layer does not learn.
        embedding: what is compared: that of the `network`, of a vision transformer its class token, as the authors have
            it; or the mean of its last `map`, which the stage `embed` writes and which learns sooner.
    """

    name: Literal["dino"] = "dino"
    hidden: Count = 2048
    bottleneck: Count = 256
    outputs: Annotated[int, Field(ge=2)] = 128
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.996
    student_temperature: Positive = 0.1
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    teacher_warmup: Fraction = 0.1
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    freeze_last: Fraction = 0.01
    embedding: Embedding = "network"

    views: ClassVar[int] = 2
    loop: ClassVar[dict[str, Any]] = {
        "steps": 162_000,
        "learning_rate": 1e-3,
        "weight_decay": 1e-5,
        "warmup": 0.2,
        "schedule": "cosine",
        "clip": 3.0,
        "crop": (0.05, 1.0),
    }
    """Of the recipe's other fields: 100 epochs, the first 20 to warm up."""


class Mae3d(_Decoder):
    """Masked autoencoding of cubes of some bands and some pixels, as SpectralGPT (Hong et al. 2024) learns.

    Foretold are the values of the masked tokens and, at every place, their sums over the groups of bands.
    """

    name: Literal["mae_3d"] = "mae_3d"
    decoder_depth: Count = 4

    views: ClassVar[int] = 1
    loop: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-4,
        "weight_decay": 0.05,
        "warmup": 0.1,
        "schedule": "cosine",
        "crop": (0.2, 1.0),
        "blur": 0.0,
    }
    """Of the recipe's other fields: the learning rate is the authors' for batches of 256, theirs are of 4096."""


class CrossModal(_Decoder):
    """Contrast of radar with optics and reconstruction of both, as CROMA (Fuller et al. 2023) learns.

    Attributes:
        temperature: of the contrast at first; it learns.
    """

    name: Literal["croma"] = "croma"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    decoder_heads: Count = 8
    temperature: Positive = 0.07

    views: ClassVar[int] = 1
    loop: ClassVar[dict[str, Any]] = {
        "model": "croma_base",
        "size": 120,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup": 0.05,
        "schedule": "cosine",
        "crop": (0.25, 1.0),
        "blur": 0.0,
    }
    """Of the recipe's other fields. The authors crop squares of 60 to 180 px: `tile: 180`, `crop: [0.11, 1]`."""


Method = Annotated[Mae | Moco | Dino | Mae3d | CrossModal, Field(discriminator="name")]
METHODS: dict[str, type[Mae | Moco | Dino | Mae3d | CrossModal]] = {
    "mae": Mae,
    "moco": Moco,
    "dino": Dino,
    "mae_3d": Mae3d,
    "croma": CrossModal,
}


class SimulatedDates(_Part):
    """Places simulated at several dates: another season, sun, sky and noise, the same ground.

    Attributes:
        count: places, over all kinds of landscape.
        px: edge of each.
        dates: of each place.
        seed: of the first place.
        noise: of the instrument, 1 as in a product.
        folder: where they are kept, for other trainings too; beside this training where None.
    """

    count: Count = 64
    px: Annotated[int, Field(ge=16, le=1024)] = 128
    dates: Count = 2
    seed: int = 3000
    noise: Annotated[float, Field(ge=0)] = 1.0
    folder: Path | None = None

    def beside(self, folder: Path) -> "SimulatedDates":
        """The same with paths relative to `folder`."""
        return self.model_copy(update={"folder": self.folder and folder / self.folder})


class PairedScenes(_Part):
    """An optical and a radar scene over the same ground.

    Attributes:
        scene: the optical one, a product or store.
        radar: the other, which is brought onto its grid.
        options: of `open_scene` for the first, such as `{grid: 10m, bands: common}`.
        radar_options: for the second.
    """

    scene: Path
    radar: Path
    options: dict[str, str] = Field(default_factory=dict)
    radar_options: dict[str, str] = Field(default_factory=dict)

    def beside(self, folder: Path) -> "PairedScenes":
        """The same with paths relative to `folder`."""
        return self.model_copy(update={"scene": folder / self.scene, "radar": folder / self.radar})


class PretrainData(_Part):
    """Images without labels; of several sources, every place is drawn as often.

    Attributes:
        earth: folder in SpectralEarth's layout, `<place>/<date>.tif`, of EnMAP's 202 bands.
        ssl4eo: folder of SSL4EO-S12's chips, `s2a/<place>/<scene>/<band>.tif` and `s1/...`, for networks of Sentinel-2,
            Sentinel-1 or both.
        scenes: products, stores or rasters; several of one place and grid, in brackets, are its dates.
        pairs: optical and radar scenes, for networks that see both.
        simulated: places to simulate.
    """

    earth: Path | None = None
    ssl4eo: Path | None = None
    scenes: tuple[tuple[Path, ...], ...] = ()
    pairs: tuple[PairedScenes, ...] = ()
    simulated: SimulatedDates | None = None

    @model_validator(mode="before")
    @classmethod
    def _lists_of_dates(cls, data: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        if isinstance(data, dict) and isinstance(data.get("scenes"), list | tuple):
            return {**data, "scenes": [[one] if isinstance(one, str | Path) else one for one in data["scenes"]]}
        return data

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if not (self.earth or self.ssl4eo or self.simulated or any(self.scenes) or self.pairs):
            raise ValueError("nothing to learn from: give earth, ssl4eo, scenes, pairs or simulated")
        if not all(self.scenes):
            raise ValueError("a place among the scenes has no date")
        return self

    def beside(self, folder: Path) -> "PretrainData":
        """The same with paths relative to `folder`."""
        scenes = tuple(tuple(folder / date for date in dates) for dates in self.scenes)
        simulated = self.simulated and self.simulated.beside(folder)
        pairs = tuple(pair.beside(folder) for pair in self.pairs)
        update = {
            "earth": self.earth and folder / self.earth,
            "ssl4eo": self.ssl4eo and folder / self.ssl4eo,
            "scenes": scenes,
            "pairs": pairs,
            "simulated": simulated,
        }
        return self.model_copy(update=update)


class AboutEncoder(_Part):
    """What the card says that training cannot know.

    Attributes:
        licence: of the weights.
        note: what they are good for, and what not.
        tile: edge of the tiles at inference, px; `size` where None.
    """

    licence: str = "Apache-2.0"
    note: str = ""
    tile: Count | None = None


class PretrainRecipe(StartPart):
    """How to pretrain a spectral backbone; the fields of the loop are those of `LoopPart`.

    Attributes:
        method: `mae`, `moco`, `dino`, `mae_3d` or `croma`, or one with its settings, such as
            `{name: mae, mask_ratio: 0.75}`. Defaults of the fields below and of the loop's depend on it, see `loop` of
            each.
        model: family of the backbone.
        settings: arguments of the family.
        weights: start from these instead of random ones.
        data: images to learn from.
        size: edge of a view, px.
        tile: edge of the square of a place that views are cropped from, px; `size` where None.
        batch: places a step.
        crop: least and largest share of the square's area that a view is a crop of, resized to `size`.
        flip: chance of each of the two mirrorings.
        blur: chance that a view is blurred.
        optimiser: `adam` (decoupled weight decay), or `sgd` with a momentum of 0.9.
        workers: threads that prepare views ahead of training.
    """

    kind: Literal["pretrain"]
    method: Method
    model: str = "spectral_vit_small"
    settings: dict[str, Any] = Field(default_factory=dict)
    data: PretrainData
    size: Annotated[int, Field(ge=8)] = 128
    tile: Annotated[int, Field(ge=8)] | None = None
    batch: Annotated[int, Field(ge=2)] = 256
    crop: tuple[Positive, Fraction] = (0.4, 1.0)
    flip: Fraction = 0.5
    blur: Fraction = 0.5
    optimiser: Literal["adam", "sgd"] = "adam"
    workers: Annotated[int, Field(ge=0)] = 0
    about: AboutEncoder = AboutEncoder()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, data: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        if not isinstance(data, dict):
            return data
        method = data.get("method")
        method = {"name": method} if isinstance(method, str) else method
        name = method.get("name") if isinstance(method, dict) else None
        defaults = METHODS[name].loop if isinstance(name, str) and name in METHODS else {}
        return {**defaults, **data, **({} if method is None else {"method": method})}

    def _problems(self) -> Iterator[str]:
        """What does not fit together."""
        if self.crop[0] > self.crop[1]:
            yield f"crop is a range from low to high; found {list(self.crop)}"
        if self.settings.get("num_classes"):
            yield "settings.num_classes: pretraining knows no classes; leave it out"
        if self.settings.get("image_size", self.size) != self.size:
            yield f"settings.image_size {self.settings['image_size']} is not size {self.size}; give size alone"
        simulated = self.data.simulated
        if simulated and simulated.px < self.edge:
            yield f"data.simulated.px {simulated.px} is less than a square of {self.edge} px"

    @property
    def edge(self) -> int:
        """Of the square that views are cropped from, px."""
        return self.tile or self.size

    def beside(self, folder: Path) -> "PretrainRecipe":
        """The recipe with absolute paths, where those it was written with are relative to `folder`."""
        folder = folder.resolve()
        update = {"data": self.data.beside(folder), "weights": weights_beside(self.weights, folder)}
        return self.model_copy(update=update)

    def identity(self) -> dict[str, Any]:
        """All that decides the weights; where simulated places are kept does not."""
        said = super().identity()
        (said["data"]["simulated"] or {}).pop("folder", None)
        return said

    def described(self) -> dict[str, Any]:
        """What the recipe says, for a card: files by their names alone, wherever they lie."""
        said = super().described()
        (said["data"].get("simulated") or {}).pop("folder", None)
        method = {"name": self.method.name, **said["method"]}
        return {**said, "method": method}
