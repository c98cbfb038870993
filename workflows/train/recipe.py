"""Recipes: YAML files that say what to train a model on, and how."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cubeloom.errors import ConfigError
from cubeloom.models.classifiers import Feature
from cubeloom.pipeline.stages import explain
from cubeloom.untrusted import read_yaml

from .denoiser_recipe import DenoiserRecipe
from .freenet_recipe import FreenetRecipe
from .labels_recipe import ClassTable, LabelledScene, Split
from .pretrain_recipe import PretrainRecipe
from .superres_recipe import SuperresRecipe
from .tune_recipe import TuneRecipe


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


EstimatorType = Literal["logistic", "lda", "svm", "random_forest", "rotated_forests", "hist_gradient_boosting"]


class EstimatorChoice(_Part):
    """Which estimator, its scikit-learn parameters, and values to search among by cross-validation.

    Attributes:
        type: `logistic` regression, `lda` (linear discriminant analysis), `svm` (radial basis functions, calibrated
            probabilities), `random_forest`, `rotated_forests` or `hist_gradient_boosting`.
        params: parameters of scikit-learn's class, or of `cubeloom.models.forests.RotatedForests`.
        search: values to try for parameters; the training blocks alone decide (macro F1).
        pca: keep this many principal components of the features.
    """

    type: EstimatorType = "logistic"
    params: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, list[Any]] = Field(default_factory=dict)
    pca: int | None = Field(default=None, ge=1)


class ClassifierRecipe(_Part):
    """How to train a classifier of spectra.

    Attributes:
        scenes: what to learn from.
        classes: name and colour of every class value.
        variable: the cube to learn from; by default what the last step made.
        steps: stages that run before, written as in a workflow.
        radar: name of a guide whose backscatter, dB, is learnt from beside the spectrum; the map then needs it too.
        features: what the estimator gets of a spectrum: itself, its `shape` (unit length), its `derivative`.
        balance: 0 counts every pixel alike, 1 every class alike; between, pixels weigh (class size) ** -balance.
        max_per_class: at most so many training pixels a class, drawn at random.
    """

    kind: Literal["classifier"]
    scenes: Annotated[tuple[LabelledScene, ...], Field(min_length=1)]
    classes: Annotated[ClassTable, Field(min_length=2)]
    variable: str | None = None
    steps: tuple[str | dict[str, dict[str, Any] | None], ...] = ()
    radar: str | None = None
    features: Annotated[tuple[Feature, ...], Field(min_length=1)] = ("spectrum", "shape")
    estimator: EstimatorChoice = EstimatorChoice()
    split: Split = Split()
    balance: float = Field(default=0.5, ge=0, le=1)
    max_per_class: int = Field(default=5000, ge=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [one.name for one in self.classes.values()]
        if len(set(names)) != len(names):
            raise ValueError(f"class names must differ; found {', '.join(names)}")
        return self

    def beside(self, folder: Path) -> "ClassifierRecipe":
        """The recipe with its paths relative to `folder`."""
        return self.model_copy(update={"scenes": tuple(scene.beside(folder) for scene in self.scenes)})


Recipe = ClassifierRecipe | DenoiserRecipe | FreenetRecipe | PretrainRecipe | SuperresRecipe | TuneRecipe
KINDS: dict[str, type[Recipe]] = {
    "classifier": ClassifierRecipe,
    "denoiser": DenoiserRecipe,
    "freenet": FreenetRecipe,
    "pretrain": PretrainRecipe,
    "superres": SuperresRecipe,
    "tune": TuneRecipe,
}


def load_recipe(path: Path) -> Recipe:
    """A recipe from a YAML file; its paths become relative to the working directory.

    Raises:
        ConfigError: no such file, or the recipe is wrong; says where and what is expected.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe")
    data = read_yaml(path)
    kind = data.get("kind") if isinstance(data, dict) else type(data).__name__
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{path}: expected a recipe with kind: {' or '.join(KINDS)}, found {kind!r}")
    try:
        return KINDS[kind].model_validate(data).beside(path.parent)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, KINDS[kind])}") from None
