"""Training by recipe: `cubeloom train RECIPE`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .classifier import TrainingReport, train_classifier
from .denoiser_recipe import DenoiserRecipe
from .recipe import ClassifierRecipe, load_recipe

if TYPE_CHECKING:
    from .loop import LoopReport

__all__ = ["ClassifierRecipe", "DenoiserRecipe", "TrainingReport", "load_recipe", "train", "train_classifier"]


def train(recipe: Path, out: Path, say: Callable[[str], None] = lambda _: None) -> "TrainingReport | LoopReport":
    """Train what a recipe file describes and save it.

    Args:
        recipe: a YAML file (see `ClassifierRecipe` and `DenoiserRecipe`); its paths are relative to itself.
        out: the file to write.
        say: takes lines on the progress, for a person.

    Raises:
        ConfigError: the recipe is wrong, or needs an extra that is not installed.
        InputError: its scenes, labels or cubes cannot be used.
    """
    loaded = load_recipe(recipe)
    if isinstance(loaded, ClassifierRecipe):
        return train_classifier(loaded, out)
    from .denoiser import train_denoiser

    return train_denoiser(loaded, out, say)
