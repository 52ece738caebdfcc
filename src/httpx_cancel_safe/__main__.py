"""`python -m httpx_cancel_safe`: report on this environment. None of this runs in a service."""

import argparse
import itertools
import json
import os
import signal
import sys
import textwrap
import traceback
import warnings
from typing import Any, Iterator, List, Optional

from . import __version__

CRASHED = "internal error"
DESCRIPTION = "Say whether httpx loses connections of cancelled requests, and try whether the patch keeps them."
EPILOG = """Exit status: 0, nothing has failed; 1, this environment would lose connections, or has no httpx
that is supported; 2, wrong use, an internal error, or a report that was interrupted or not printed."""


def main(arguments: Optional[List[str]] = None) -> int:
    """Print the report, and return the exit status that the help text describes."""
    parser = argparse.ArgumentParser("python -m httpx_cancel_safe", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--version", action="version", version=__version__)
    as_json = parser.parse_args(arguments).json
    checks = []
    for check in _checks():
        checks.append(check)
        if not as_json:
            print(_line(*check), flush=True)
    marks = {check.status for check in checks}
    if as_json:
        listed = [check._asdict() for check in checks]
        print(json.dumps({"schema_version": 1, "ok": "fail" not in marks, "checks": listed}, indent=2))
    elif "fail" in marks:
        print("\nNot safe: see what is marked fail.")
    else:
        print("\nNothing failed, but see what is marked warn." if "warn" in marks else "\nSafe.")
    return 2 if checks[-1].name == CRASHED else int("fail" in marks)


def _checks() -> Iterator[Any]:
    """Yield a check for each of NAMES, in their order. An internal error is a check too, and the last one."""
    from .report.checks import NAMES, Check, examine

    try:
        for name, check in itertools.zip_longest(NAMES, examine()):
            yield check or Check(name, "skip", "not looked at, for want of an httpx")
    except Exception as exc:
        traceback.print_exc()
        yield Check(CRASHED, "fail", ascii(exc), "please report it")


def _line(name: str, status: str, detail: str, hint: str) -> str:
    text = textwrap.wrap(detail, 48)  # 80 columns in all.
    text += textwrap.wrap(hint, 48, initial_indent="-> ", subsequent_indent="   ")
    return "  {}  {:<23} {}".format(status, name, ("\n" + " " * 32).join(text))


def _command() -> int:
    if sys.stdout is None:
        return 2
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # asyncio and trio would turn a KeyboardInterrupt into another cancel of the trial.
        signal.signal(signal.SIGINT, lambda *_: os._exit(2))
    warnings.simplefilter("ignore")  # About clients that cannot be closed.
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except (OSError, ValueError):  # The output is full or closed, as by `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again when it exits.
        return 2


if __name__ == "__main__":
    sys.exit(_command())
