"""Put the net in place as soon as httpx is imported, now or later.

    import httpx_cancel_safe.auto

imports no httpx itself, and is silent where httpx is absent, fixed or too old. The same
without touching code: install autowrapt, and set AUTOWRAPT_BOOTSTRAP=httpx_cancel_safe.
"""

from typing import Any

import wrapt

from ._patch import patch
from ._releases import UnsupportedHTTPXError
from ._stats import logger


def patch_on_import(module: Any) -> None:
    """Patch, now that `module`, which is httpx, is imported. Raises nothing."""
    try:
        patch()
    except UnsupportedHTTPXError as exc:
        logger.info("not in place: %s", exc)
    except Exception:
        # Whoever imports httpx must get it, also where we are not up to it.
        logger.warning("not in place", exc_info=True)


wrapt.register_post_import_hook(patch_on_import, "httpx")
