"""Nothing to stack on where httpx has the fix, or no AsyncClient."""

import os

from tests.conftest import RELEASE

if not hasattr(os, "fork") or not (0, 15) <= RELEASE < (0, 23):
    collect_ignore_glob = ["test_*.py"]
