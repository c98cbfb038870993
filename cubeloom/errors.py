"""The errors Cubeloom raises on purpose.

Every message says what happened, where (scene, stage, block), what was found and expected, and what to do next.
The retry loop and the exit codes of the command line look at the class alone.
"""


class CubeloomError(Exception):
    """Root of all errors that Cubeloom raises on purpose."""

    exit_code = 1


class InputError(CubeloomError):
    """A product, configuration, catalog or link that cannot be used as it stands."""

    exit_code = 3


class ConfigError(InputError):
    """A wrong call, workflow or recipe: something its author mends, not the data's provider."""

    exit_code = 2


class ModelError(CubeloomError):
    """A model that cannot be loaded, or that does not fit the scene it is bound to."""

    exit_code = 2


class StoreError(CubeloomError):
    """A product store that is incomplete, damaged, or cannot be written."""

    exit_code = 3


class RetryableError(CubeloomError):
    """A failure that may pass when tried again: a dropped connection, a busy server."""

    exit_code = 75


class LockedError(CubeloomError):
    """Another run holds the output directory."""

    exit_code = 75


class Stopped(CubeloomError):  # noqa: N818 - no error, but what was asked for
    """The run was asked to stop; what was under way has come to its end and is on record, the rest was not begun."""

    exit_code = 143
