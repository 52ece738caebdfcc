"""A pytest plugin that patches httpx for the whole run. httpx's own tests know nothing of it."""

import httpx_cancel_safe


def pytest_configure(config):
    assert httpx_cancel_safe.patch()


def pytest_terminal_summary(terminalreporter):
    # A run in which the patch went lost would compare nothing.
    assert httpx_cancel_safe.is_patched()
    terminalreporter.write_line("httpx_cancel_safe: %r" % (httpx_cancel_safe.stats(),))
