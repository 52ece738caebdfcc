"""Which releases of httpx are served, and which have the fix, as data."""

import re
from typing import Tuple

SERVED_FROM = (0, 15)  # The first with the transports that we know.
FIXED_FROM = (0, 23)  # https://github.com/encode/httpx/pull/2156
SERVED = "0.15.0 to 0.22.0"


class UnsupportedHTTPXError(RuntimeError):
    """The httpx found is older than those served. Names the version found and those served."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"httpx {found} is not supported: httpx-cancel-safe serves httpx {SERVED}, and "
            "has nothing to do from 0.23.0 on"
        )


def is_affected(version: str) -> bool:
    """Tell whether this version of httpx lacks the fix.

    Raises UnsupportedHTTPXError below 0.15.0, and for what is not a version. Pre-releases
    count as the release they lead to: httpx published none of 0.23.0.
    """
    match = re.match(r"v?(\d+)\.(\d+)", version)
    if match is None:
        raise UnsupportedHTTPXError(repr(version))
    numbers: Tuple[int, ...] = tuple(int(number) for number in match.groups())
    if numbers < SERVED_FROM:
        raise UnsupportedHTTPXError(version)
    return numbers < FIXED_FROM
