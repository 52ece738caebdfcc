"""Run a benchmark: `python -m tests.benchmarks NAME [--help]`."""

import importlib
import json
import sys

from . import common

NAMES = {
    "cost": "instructions of a request that ends well (needs valgrind)",
    "cancel": "microseconds of a cancel, with 50 to 3,200 requests in flight",
    "workers": "requests of 24 workers on a pool of 8, with and without cancels",
    "soak": "memory, files, tasks and objects over many cancelled requests",
    "throughput": "requests a second to a server on loopback, plain and patched",
    "upgrade": "connections that a service loses on each httpx",
}
name, *arguments = [*sys.argv[1:], "--help"]
if name not in NAMES:
    sys.exit("\n".join("python -m tests.benchmarks %-11s %s" % item for item in sorted(NAMES.items())))
module = importlib.import_module("tests.benchmarks." + name)
if arguments[0] == "--child":  # A process that another one has started, see common.py.
    print(json.dumps(module.child(*json.loads(arguments[1]))))
elif arguments[0] == "--answer":
    common.serve(module.answer, int(arguments[1]))
else:
    del sys.argv[1]
    module.main()
