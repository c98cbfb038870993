"""What the `AWS_*` environment says about the S3 server, checked before a library takes it."""

import os
import re
from urllib.parse import urlsplit

from cubeloom.errors import ConfigError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def allows_http() -> bool:
    """Whether data and signatures may cross the network in the clear."""
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")


def s3_endpoint() -> str | None:
    """The address of the S3 server, or None for that of AWS.

    Raises:
        ConfigError: it is not an address, holds a user, or is not encrypted though nobody said that it need not be;
            it is not repeated, for it may hold a secret.
    """
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None:
        return None
    endpoint = os.environ[variable]
    if (
        not re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?", endpoint)
        or not urlsplit(endpoint).hostname
    ):
        raise ConfigError(f"{variable} is not the address of a server; expected https://host or https://host:port")
    if endpoint.startswith("http://") and not allows_http():
        raise ConfigError(
            f"{variable} is not encrypted; if that is meant, as on a network of one's own, set AWS_ALLOW_HTTP=true"
        )
    return endpoint
