"""Training by recipe: `cubeloom train RECIPE`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .classifier import TrainingReport, train_classifier
from .denoiser_recipe import DenoiserRecipe
from .freenet_recipe import FreenetRecipe
from .pretrain_recipe import PretrainRecipe
from .recipe import ClassifierRecipe, load_recipe
from .superres_recipe import SuperresRecipe
from .tune_recipe import TuneRecipe

if TYPE_CHECKING:
    from .loop import LoopReport

__all__ = [
    "ClassifierRecipe",
    "DenoiserRecipe",
    "FreenetRecipe",
    "PretrainRecipe",
    "SuperresRecipe",
    "TrainingReport",
    "TuneRecipe",
    "load_recipe",
    "train",
    "train_classifier",
]


def train(recipe: Path, out: Path, say: Callable[[str], None] = lambda _: None) -> "TrainingReport | LoopReport":
    """Train what a recipe file describes and save it.

    Args:
        recipe: a YAML file (see the class of its kind in `recipe.KINDS`); its paths are relative to itself.
        out: the file to write.
        say: takes lines on the progress, for a person.

    Raises:
        ConfigError: the recipe is wrong, or needs an extra that is not installed.
        InputError: its scenes, labels or cubes cannot be used.
    """
    loaded = load_recipe(recipe)
    if isinstance(loaded, ClassifierRecipe):
        return train_classifier(loaded, out)
    if isinstance(loaded, FreenetRecipe):
        from .freenet import train_freenet

        return train_freenet(loaded, out, say)
    if isinstance(loaded, TuneRecipe):
        from .tune import train_tune

        return train_tune(loaded, out, say)
    if isinstance(loaded, PretrainRecipe):
        from .pretrain import pretrain

        return pretrain(loaded, out, say)
    if isinstance(loaded, SuperresRecipe):
        from .superres import train_superres

        return train_superres(loaded, out, say)
    from .denoiser import train_denoiser

    return train_denoiser(loaded, out, say)
