"""Commands on models: which there are, their training, and how they compare."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .cli_options import Json

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe; paths in it are relative to it.")],
    out: Annotated[Path, typer.Option(help="File for the model.")],
    as_json: Json = False,
) -> None:
    """Train what RECIPE describes: a classifier from labelled scenes, or a network that denoises from clean cubes.

    The training of a network goes on where an earlier call for the same OUT stopped.
    """
    from .console import print_json, say
    from .train import train as train_recipe

    report = train_recipe(recipe, out, say)
    if as_json:
        print_json(report.summary())
    else:
        say(str(report))
    raise typer.Exit(report.exit_code)


models = typer.Typer(help="The networks that stages can use.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models")


@models.command("list")
def models_list(as_json: Json = False) -> None:
    """List the families of networks and the weights that are shipped for them."""
    from .console import print_json
    from .model_list import describe_models, print_models

    if as_json:
        print_json(describe_models())
    else:
        print_models()


@models.command("info")
def models_info(
    model: Annotated[str, typer.Argument(help="A name of the list, weights with a card, or a saved classifier.")],
    weights: Annotated[str | None, typer.Option(help="Weights of the family MODEL: file or hf: source.")] = None,
    as_json: Json = False,
) -> None:
    """Show the card of a model: settings, digest, licence, training and metrics."""
    from .console import print_json
    from .model_list import describe_model, print_model

    description = describe_model(model, weights)
    if as_json:
        print_json(description)
    else:
        print_model(description)


evaluate = typer.Typer(help="Compare methods on data of your own.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate, name="evaluate")


@evaluate.command("denoise")
def evaluate_denoise(
    cubes: Annotated[list[str], typer.Argument(metavar="CUBE...", help="Products, stores, GeoTIFF or MATLAB files.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and figure.png.")],
    methods: Annotated[
        str, typer.Option(help="Some of noisy, subspace, hymixde, network:NAME[@WEIGHTS].")
    ] = "noisy,subspace,hymixde",
    noises: Annotated[str, typer.Option(help="Kinds of noise; protocol stands for nine of them.")] = "protocol",
    seed: Annotated[int, typer.Option(help="The same seed gives the same noise.", min=0)] = 0,
    crop: Annotated[int, typer.Option(help="Longest side of the middle that is taken of a cube, px.", min=16)] = 512,
    as_json: Json = False,
) -> None:
    """Add noise to clean CUBEs, denoise them by every method and measure what comes out."""
    from .console import say
    from .evaluate.denoise_files import evaluate_denoise_files

    found, written = evaluate_denoise_files(cubes, out, methods=methods, noises=noises, seed=seed, crop=crop, tell=say)
    _end(found, written, as_json=as_json)


@evaluate.command("superres")
def evaluate_superres(
    scenes: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENE...", help="Products, stores or rasters, with #guide=PATH, or simulated:LANDSCAPE."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and figure.png.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Some of bicubic, lanczos, network:NAME[@WEIGHTS], gsa, cnmf, hysure, with +KEY=VALUE. [default: all]"
        ),
    ] = None,
    protocols: Annotated[str, typer.Option(help="full, reduced (Wald's protocol), or both.")] = "full,reduced",
    scale: Annotated[int, typer.Option(help="How many times finer.")] = 3,
    mtf: Annotated[float, typer.Option(help="Modulation transfer of the scenes' sensors at Nyquist.")] = 0.3,
    crop: Annotated[int, typer.Option(help="Longest side of the middle that is taken of a scene, px.", min=16)] = 256,
    as_json: Json = False,
) -> None:
    """Refine SCENEs by every method, and measure the products against truth, guide and what was measured."""
    from .console import say
    from .evaluate.superres_files import evaluate_superres_files

    options: dict[str, Any] = {"methods": methods, "protocols": protocols, "scale": scale, "mtf": mtf, "crop": crop}
    found, written = evaluate_superres_files(scenes, out, **options, tell=say)
    _end(found, written, as_json=as_json)


@evaluate.command("classify")
def evaluate_classify(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="YAML of labelled images, a recipe, or SET=FOLDER.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json, table.md and figure.png.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Some of random_forest, rotated_forests, svm, cnn1d, cnn2d, freenet, adapter:MODEL, probe:MODEL, with "
            "+KEY=VALUE."
        ),
    ] = "random_forest,svm,cnn1d,cnn2d,freenet",
    splits: Annotated[
        str, typer.Option(help="Some of random, blocks, tiles, given, or a YAML file of test tiles.")
    ] = "random,blocks",
    seeds: Annotated[int, typer.Option(help="Runs of each method on each split, or draws of it.", min=1)] = 3,
    per_class: Annotated[int | None, typer.Option(help="At most so many training pixels of a class.", min=1)] = None,
    block: Annotated[int, typer.Option(help="Edge of the squares of blocks and tiles, px.", min=1)] = 16,
    buffer: Annotated[int, typer.Option(help="No training pixel this near to a test square, px.", min=0)] = 1,
    test_fraction: Annotated[float, typer.Option(help="Share of the labels that blocks test on.")] = 0.3,
    as_json: Json = False,
) -> None:
    """Train every method on the same pixels of labelled IMAGEs and compare the maps that they make."""
    from .console import say
    from .evaluate.class_files import evaluate_class_files
    from .evaluate.class_splits import SplitOptions

    options = SplitOptions(seeds, block, test_fraction, buffer, per_class)
    found, written = evaluate_class_files(images, out, methods=methods, splits=splits, options=options, tell=say)
    _end(found, written, as_json=as_json)


def _end(found: Any, written: Iterable[Path], *, as_json: bool) -> NoReturn:  # noqa: ANN401 - any scores
    """Say what an evaluation wrote, and leave with 3 where a method failed."""
    from .console import print_json, say

    say("\n".join(str(path) for path in written))
    if as_json:
        print_json(found.to_json())
    raise typer.Exit(3 if any(score.error for score in found.scores) else 0)
