"""Which releases of httpx are supported, and which have the fix."""

import re

SUPPORTED_FROM = (0, 15)  # The first with the transports that we know.
FIXED_FROM = (0, 23)  # https://github.com/encode/httpx/pull/2156


class UnsupportedHTTPXError(RuntimeError):
    """The installed httpx is older than 0.15.0. The message names its version and those supported."""


def is_affected(version: str) -> bool:
    """Return True if this version of httpx lacks the fix.

    Raises UnsupportedHTTPXError below 0.15.0, and for what is not a version. A pre-release counts as the release that
    it leads to: httpx published none of 0.23.0.
    """
    match = re.match(r"v?(\d+)\.(\d+)", version)
    release = tuple(int(number) for number in match.groups()) if match else ()
    if release < SUPPORTED_FROM:
        raise UnsupportedHTTPXError(
            f"httpx {version!r} is not supported: httpx-cancel-safe supports httpx 0.15.0 to 0.22.0, and has nothing "
            "to do from 0.23.0 on"
        )
    return release < FIXED_FROM
