"""Where the files of a product lie: a folder of this machine (any `pathlib.Path`), or one behind a network."""

from typing import Protocol


class File(Protocol):
    """A file that can be read whole."""

    def read_bytes(self) -> bytes:
        """All its bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        ...


class Folder(Protocol):
    """Files by their paths below the folder; as text it names itself in messages."""

    def __truediv__(self, key: str, /) -> File:
        """The file at a relative path with slashes, whether or not it is there."""
        ...
