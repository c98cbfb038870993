"""Options that several commands have."""

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from cubeloom.errors import ConfigError

Workers = Annotated[int, typer.Option(help="Block tasks at a time.", min=1)]
Memory = Annotated[str, typer.Option(help="Memory the run may use, such as 8GB; a plan above it is refused.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new store is complete.")]
Scenes = Annotated[int, typer.Option(help="Scenes at once, as memory allows; 0: as many as workers, to 4.", min=0)]
Scheduler = Annotated[str | None, typer.Option(help="Dask cluster: tcp://HOST:PORT, a scheduler file, or processes.")]
Retries = Annotated[int, typer.Option(help="How often a failure that may pass is tried again.", min=0)]
Keep = Annotated[int | None, typer.Option(help="Versions of each product that stay; all by default.", min=1)]
PublishTo = Annotated[str | None, typer.Option(help="Also push products to s3://BUCKET/PREFIX or icechunk+s3://…")]
KeepLocal = Annotated[bool, typer.Option(help="Keep what was pushed under OUT as well.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Open = Annotated[
    list[str] | None,
    typer.Option("--open", metavar="NAME=VALUE", help="How the product is opened: grid=20m; may be repeated."),
]
Guide = Annotated[str | None, typer.Option(help="A second scene of the same ground, for a model that sees two.")]
GuideOpen = Annotated[
    list[str] | None, typer.Option("--guide-open", metavar="NAME=VALUE", help="How the guide is opened.")
]
Detector = Annotated[str | None, typer.Option(help="vnir or swir, for EnMAP L1B; as --open detector=...")]
CORES = os.cpu_count() or 1


def reader_options(opened: Sequence[str] | None, detector: str | None = None) -> dict[str, str]:
    """Options for `open_scene` from `--open NAME=VALUE` and `--detector`.

    Raises:
        ConfigError: one is not of that form, or says another value of what was said before.
    """
    options: dict[str, str] = {}
    for one in [*(opened or ()), *([f"detector={detector}"] if detector else ())]:
        name, equals, value = (part.strip() for part in one.partition("="))
        if not (name and equals and value):
            raise ConfigError(f"--open {one!r}: expected NAME=VALUE, such as grid=20m")
        if options.setdefault(name, value) != value:
            raise ConfigError(f"--open {one!r}: {name} is {options[name]!r} already; say it once")
    return options


def open_settings(opened: Sequence[str] | None) -> list[str]:
    """The same for a workflow, whose `open:` they change: as `--set open.NAME=VALUE`."""
    return [f"open.{name}={value}" for name, value in reader_options(opened).items()]
