"""Weights on a model hub: `hf:owner/repo/file@sha256`, fetched once into a cache and never used unhashed.

`HF_ENDPOINT` names another server than that of Hugging Face, `CUBELOOM_CACHE` another cache than
`~/.cache/cubeloom`, and with `CUBELOOM_OFFLINE=1` nothing is asked of the network.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cubeloom.errors import InputError, ModelError, RetryableError
from cubeloom.untrusted import safe_name

from .cards import card_path
from .checkpoints import SUFFIXES, weights_digest

PREFIX = "hf:"


@dataclass(frozen=True)
class HubFile:
    """A file on the hub whose content is known beforehand.

    Attributes:
        repo: `owner/name`.
        file: path inside the repository.
        sha256: hex digest of its content.
    """

    repo: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}/{self.file}"

    @property
    def cached(self) -> Path:
        """Where it lies once it was fetched."""
        return _cache() / self.repo / self.sha256 / self.file


def parse_source(text: str) -> HubFile:
    """The file that `hf:owner/repo/path/in/repo.safetensors@sha256` stands for.

    Raises:
        ModelError: something else, a name that could leave the cache, no digest, or no suffix of weights.
    """
    where, _, sha256 = text.removeprefix(PREFIX).rpartition("@")
    parts = where.split("/")
    expected = "expected hf:owner/repo/file.safetensors@sha256"
    if not text.startswith(PREFIX) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ModelError(f"weights {text!r}: {expected}, the digest as 64 hex digits; without it none is fetched")
    if len(parts) < 3:
        raise ModelError(f"weights {text!r}: {expected}; found {len(parts)} of its three names")
    try:
        for part in parts:
            safe_name(part, "name")
    except InputError as error:
        raise ModelError(f"weights {text!r}: {error}") from None
    if Path(where).suffix.lower() not in SUFFIXES:
        raise ModelError(f"weights {text!r}: {expected}; known suffixes are {', '.join(SUFFIXES)}")
    return HubFile("/".join(parts[:2]), "/".join(parts[2:]), sha256.lower())


def fetch(source: HubFile) -> Path:
    """The weights in the cache, with their card beside them where the repository has one.

    A file of another digest never gets into the cache, and one that was damaged there is fetched anew. The card comes
    first and both are moved into place whole, so that an interrupted download leaves nothing behind.

    Raises:
        ModelError: the file does not exist or must not be read, has another digest, or is not in the cache when
            offline.
        RetryableError: the hub cannot be reached.
    """
    cached = source.cached
    if cached.is_file() and weights_digest(cached) == source.sha256:
        return cached
    if os.environ.get("CUBELOOM_OFFLINE", "") not in ("", "0"):
        raise ModelError(
            f"weights {source}: not at {cached}, and CUBELOOM_OFFLINE is set; use them once online, or copy them there"
        )
    try:
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=_cache()) as staging:
            _fetch_into(source, Path(staging))
    except OSError as error:
        raise ModelError(
            f"weights {source}: cannot be kept below {_cache()} ({error}); set CUBELOOM_CACHE to a folder with room"
        ) from None
    return cached


def _fetch_into(source: HubFile, staging: Path) -> None:
    weights = _download(source, source.file, staging)
    if weights is None:
        raise ModelError(f"weights {source}: the repository {source.repo} has no file {source.file!r}")
    found = weights_digest(weights)
    if found != source.sha256:
        raise ModelError(
            f"weights {source}: sha256 is {found}, expected {source.sha256}; the file on the hub is another one now, "
            "so it was thrown away. Name the digest you trust"
        )
    card = _download(source, str(card_path(Path(source.file))), staging)
    source.cached.parent.mkdir(parents=True, exist_ok=True)
    if card is not None:
        card.replace(card_path(source.cached))
    weights.replace(source.cached)


def _download(source: HubFile, file: str, into: Path) -> Path | None:
    """One file of the source's repository; None where there is none of that name."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks Hugging Face, whatever the endpoint, who might be calling
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    try:
        return Path(hf_hub_download(source.repo, file, local_dir=into, endpoint=endpoint))
    except LocalEntryNotFoundError as error:  # what the client raises when the server cannot be asked
        raise RetryableError(f"weights {source}: {error.__cause__ or error}; try again, or use a local file") from None
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"weights {source}: {error}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"weights {source}: there is no repository {source.repo}, or it is not open to you (`hf auth login`)"
        ) from None
    except Exception as error:
        raise RetryableError(f"weights {source}: {error}; try again, or use a local file") from error


def _cache() -> Path:
    base = os.environ.get("CUBELOOM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cubeloom"
    return Path(base).expanduser() / "weights"
