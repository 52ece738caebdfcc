"""Patch httpx as soon as it is imported, now or later.

    import httpx_cancel_safe.auto

imports no httpx itself, and is silent where httpx is absent, fixed or too old. To have the same without touching code,
install autowrapt and set AUTOWRAPT_BOOTSTRAP=httpx_cancel_safe. `unpatch()`, called before httpx is imported, cancels
both.
"""

import sys
from typing import Any

import wrapt

from . import _patch
from ._stats import logger


def patch_on_import(module: Any) -> None:
    """Patch, now that `module`, which is httpx, is imported. Raises nothing."""
    try:
        if not _patch.auto_is_cancelled:
            _patch.patch()
    except _patch.UnsupportedHTTPXError as exc:
        logger.info("not in place: %s", exc)
    except Exception:
        # The import of httpx must succeed even where patching fails.
        logger.warning("not in place", exc_info=True)


if "httpx" not in sys.modules:
    _patch.auto_is_cancelled = False
wrapt.register_post_import_hook(patch_on_import, "httpx")
