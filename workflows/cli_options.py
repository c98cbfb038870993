"""Options that several commands have."""

import os
from typing import Annotated

import typer

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
Detector = Annotated[str | None, typer.Option(help="vnir or swir, for EnMAP L1B.")]
CORES = os.cpu_count() or 1
