"""httpx's own test suite, without the patch and with it: each test must end the same way.

    tox run -e suite-httpx018,suite-httpx020,suite-httpx022

The tests are those of the httpx that is installed, from its repository: PyPI has none of them. A clone
will do as well: HTTPX_REPOSITORY=../httpx tox run ... The exit status is 1 if a test differs.
"""

import collections
import os
import pathlib
import subprocess
import sys
import tempfile
from xml.etree import ElementTree as ET

import httpx

REPOSITORY = os.environ.get("HTTPX_REPOSITORY", "https://github.com/encode/httpx")
HERE = pathlib.Path(__file__).resolve().parent


def run_suite(checkout, *options):
    """Run the suite: (exit status, the outcome of each test)."""
    report = checkout / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "--junitxml", str(report), *options]
    # The plugin cannot be imported as a part of `tests`: that is httpx's in this run.
    status = subprocess.call(command, cwd=str(checkout), env=dict(os.environ, PYTHONPATH=str(HERE)))
    outcomes = {}
    for case in ET.parse(str(report)).iter("testcase"):
        name = "%s::%s" % (case.get("classname"), case.get("name"))
        # One that fails in its teardown too has two entries.
        ends = [end.tag for end in case if end.tag in ("failure", "error", "skipped")]
        outcomes.setdefault(name, []).extend(ends or ["passed"])
    return status, outcomes


def main():
    with tempfile.TemporaryDirectory() as directory:
        checkout = pathlib.Path(directory) / "httpx"
        clone = ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth=1"]
        subprocess.check_call([*clone, "--branch", httpx.__version__, REPOSITORY, str(checkout)])
        status, before = run_suite(checkout)
        status_with, after = run_suite(checkout, "-p", "patched")
    print("httpx %s, Python %s" % (httpx.__version__, sys.version.split()[0]))
    for name, outcomes in (("plain", before), ("patched", after)):
        print("  %s: %s" % (name, collections.Counter(map(" and ".join, outcomes.values()))))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            print("  differs: %s: %s, %s" % (name, before.get(name), after.get(name)))
        elif before[name] != ["passed"]:
            print("  the same in both: %s: %s" % (name, " and ".join(before[name])))
    return int(not before or before != after or status != status_with)


if __name__ == "__main__":
    sys.exit(main())
