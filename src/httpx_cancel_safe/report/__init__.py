"""What `python -m httpx_cancel_safe` finds out. Nothing in this package ever runs in a service."""
