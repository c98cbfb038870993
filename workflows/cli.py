"""The command line. Every command imports what it needs when it runs, so that `--help` is quick."""

import signal
import sys
import warnings
from typing import TextIO

import typer

from cubeloom.errors import CubeloomError
from cubeloom.secrets import redact

from . import cli_models, cli_runs, cli_scenes
from .stopping import stop_now

app = typer.Typer(
    name="cubeloom",
    help="Imaging-spectrometer scenes from a catalog to analysis-ready Zarr.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for part in (cli_runs, cli_scenes, cli_models):
    app.add_typer(part.app)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line: where in our code it was raised helps nobody here."""
    sys.stderr.write(redact(f"warning: {message}\n"))


def main() -> None:
    """Entry point: our own errors become one message and an exit code."""
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # sensor geometry has none by design
    warnings.showwarning = _show_warning
    before = signal.signal(signal.SIGTERM, stop_now)
    try:
        app(prog_name="cubeloom")
    except CubeloomError as error:
        sys.stderr.write(f"error: {redact(str(error))}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        sys.stderr.write(redact(f"error: {error.filename or 'a file'}: {error.strerror or error}\n"))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; a run keeps its finished blocks, the same command goes on from there\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
