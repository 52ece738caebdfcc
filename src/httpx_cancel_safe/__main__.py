"""`python -m httpx_cancel_safe`: is this environment safe, and does the net hold?"""

import argparse
import json
import os
import sys
import textwrap
import traceback
import warnings
from typing import List, Optional

from . import __version__
from ._doctor import Check, examine

COLOURS = {"pass": "32", "warn": "33", "fail": "31", "skip": "2"}


def main(arguments: Optional[List[str]] = None) -> int:
    """Print the report, and return the exit status that the help text speaks of."""
    parser = argparse.ArgumentParser(
        prog="python -m httpx_cancel_safe",
        description="Tell which httpx is installed and whether it loses the connections of "
        "cancelled requests, and try on loopback whether the net holds them.",
        epilog="Exit status: 0, nothing has failed; 1, this environment would lose "
        "connections, or has no httpx that is served; 2, wrong use or an internal error.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--version", action="version", version=__version__)
    as_json = parser.parse_args(arguments).json
    checks: List[Check] = []
    crashed = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About clients that cannot be closed.
            for check in examine(_progress):
                checks.append(check)
                _progress("")
                if not as_json:
                    print(_line(check), flush=True)
    except BrokenPipeError:
        raise
    except Exception as exc:
        crashed = True
        _progress("")
        traceback.print_exc()
        checks.append(Check("internal error", "fail", repr(exc), "please report it"))
    marks = {check.status for check in checks}
    if as_json:
        found = [check._asdict() for check in checks]
        report = {"schema_version": 1, "ok": "fail" not in marks, "checks": found}
        print(json.dumps(report, indent=2))
    elif "fail" in marks:
        print("\nNot safe: see what is marked fail.")
    else:
        print("\nNothing failed, but see what is marked warn." if "warn" in marks else "\nSafe.")
    return 2 if crashed else int("fail" in marks)


def _line(check: Check) -> str:
    mark = check.status
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        mark = f"\033[{COLOURS[mark]}m{mark}\033[0m"
    text = textwrap.wrap(check.detail, 48)  # 80 columns in all.
    text += textwrap.wrap(check.hint, 48, initial_indent="-> ", subsequent_indent="   ")
    return "  {}  {:<23} {}".format(mark, check.name, ("\n" + " " * 32).join(text))


def _progress(what: str) -> None:
    """Show on a terminal what is going on; clear that when it is over."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K" + (what + " ..." if what else ""))
        sys.stderr.flush()


if __name__ == "__main__":
    try:
        status: int = main()
    except BrokenPipeError:  # `| head` has seen enough. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 2
    sys.exit(status)
