"""Run the tests with nothing but Python and pip.

    python tests/run.py                  on this Python: each httpx from 0.15 to 0.22, 0.23 and 0.28 that works on it
    python tests/run.py -k sweep         the same, with arguments for pytest
    python tests/run.py --matrix         the whole matrix of pyproject.toml by tox, on each Python that is found
    python tests/run.py --matrix -e ...  the same, with arguments for tox

Everything goes to .venvs and .tox; no Python is ever downloaded.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = "Scripts" if os.name == "nt" else "bin"
THIS = sys.version_info[:2]

TOOLS = ["wrapt", "pytest", "pytest-timeout", "pytest-cov<7", "trustme", "h2<5", "sniffio"]
OLD = ["anyio>=3,<4", "trio<0.24", "h11<0.13"]  # What httpx before 0.23 works with.
if THIS >= (3, 13):  # No trio that anyio 3 knows can be imported there.
    OLD = ["anyio>=3,<4", "h11<0.13", "legacy-cgi"]
# Each httpx with the httpcore that its users have. pyproject.toml has more pairs, each pinned to the last digit.
CELLS = {
    "httpx 0.15": ["httpx==0.15.5", "httpcore==0.11.1", "h11<0.10"] + OLD,
    "httpx 0.16": ["httpx==0.16.1", "httpcore==0.12.3"] + OLD,
    "httpx 0.17": ["httpx==0.17.1", "httpcore==0.12.3"] + OLD,
    "httpx 0.18": ["httpx==0.18.2", "httpcore==0.13.3"] + OLD,
    "httpx 0.19": ["httpx==0.19.0", "httpcore==0.13.7"] + OLD,
    "httpx 0.20": ["httpx==0.20.0", "httpcore==0.13.7"] + OLD,
    "httpx 0.21": ["httpx==0.21.3", "httpcore==0.14.3"] + OLD,
    "httpx 0.22": ["httpx==0.22.0", "httpcore==0.14.7", "socksio"] + OLD,
    "httpx 0.23": ["httpx==0.23.0", "httpcore==0.15.0"] + OLD,
    "httpx 0.28": ["httpx==0.28.1", "httpcore==1.0.9", "anyio", "trio"],
}
FIRST_PYTHON = {"httpx 0.23": (3, 7), "httpx 0.28": (3, 8)}


def run(log, *command, **options):
    """Run a command with its output in a file; RuntimeError if it fails."""
    command = [str(part) for part in command]
    log.write("$ %s\n" % " ".join(command))
    log.flush()
    if subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, cwd=str(ROOT), **options):
        raise RuntimeError("failed: " + " ".join(command[:4]))


def run_pytest(cell, venv, log, report, arguments):
    """Run the tests of a cell in its virtual environment, which is made anew where it is not complete."""
    python, complete, wanted = venv / BIN / "python", venv / "complete", CELLS[cell] + TOOLS
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not complete.exists() or complete.read_text().splitlines() != wanted:
        run(log, sys.executable, "-m", "venv", "--clear", venv)  # On Debian it needs the package python3-venv.
        # A pip that can build this package: that of Python 3.6 cannot.
        run(log, *install, "--upgrade", "pip<22" if THIS < (3, 7) else "pip")
        run(log, *install, *wanted)
        complete.write_text("\n".join(wanted))
    run(log, *install, "--force-reinstall", "--no-deps", ROOT)
    environment = dict(os.environ, PYTEST_TIMEOUT="180")
    run(log, python, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml", report, *arguments, env=environment)


def counts_of(report):
    """What a report of pytest's counts: passed, failed, skipped; none if there is no report."""
    if not report.exists():
        return 0, 0, 0
    suite = next(ET.parse(str(report)).iter("testsuite"))
    total, failures, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
    return max(total - failures - errors - skipped, 0), failures + errors, skipped


def run_cell(cell, arguments):
    """Run the tests of one cell; what they count. A cell that did not get as far, or ran no test, has failed."""
    venv = ROOT / ".venvs" / ("%d.%d-%s" % (THIS + (cell.replace(" ", "-"),)))
    venv.parent.mkdir(exist_ok=True)
    log_path, report = (venv.with_name(venv.name + suffix) for suffix in (".log", ".xml"))
    if report.exists():
        report.unlink()
    began, problem = time.time(), ""
    with log_path.open("w") as log:
        try:
            run_pytest(cell, venv, log, report, arguments)
        except RuntimeError as exc:
            problem = str(exc)
    passed, failed, skipped = counts_of(report)
    if not failed and (problem or not passed):
        failed, problem = 1, problem or "it ran no test"
    text = "%s: %d passed, %d failed, %d skipped" % (cell, passed, failed, skipped)
    print("%s in %d s (%s)" % (text, time.time() - began, log_path.relative_to(ROOT)), flush=True)
    if problem:
        lines = [line for line in log_path.read_text().splitlines() if not line.startswith("SKIPPED")]
        print("\n".join(["%s: %s" % (cell, problem)] + lines[-100:]), flush=True)
    return passed, failed, skipped


def run_here(arguments):
    """Run all cells that this Python can run, two at a time."""
    print("Python %s" % sys.version.split()[0])
    cells = []
    for cell in reversed(list(CELLS)):
        if THIS >= FIRST_PYTHON.get(cell, (3, 6)) and (THIS <= (3, 13) or cell == "httpx 0.28"):
            cells.append(cell)
        else:
            print("%s: left out, it is not for this Python" % cell)
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda cell: run_cell(cell, arguments), cells))


# -- The matrix --------------------------------------------------------------------------------


def counts_of_tox(name, outcome):
    """What a cell of the matrix counts; a cell that ran no test has failed, whatever tox says of it."""
    if outcome["result"]["skipped"]:
        print("%s: left out, its Python is not on this machine" % name)
        return 0, 0, 0
    passed, failed, skipped = counts_of(ROOT / ".tox" / name / "junit.xml")
    steps = outcome.get("test", [])
    if steps and not any("pytest" in pathlib.Path(step["command"][0]).name for step in steps):
        # A cell without tests, like lint: each of its commands counts as one.
        failed = sum(step["retcode"] != 0 for step in steps)
        passed = len(steps) - failed
    if not failed and not (passed and outcome["result"]["success"]):
        print("%s: %s" % (name, "failed outside of its tests" if passed else "ran no test"))
        failed = 1
    return passed, failed, skipped


def run_matrix(arguments):
    """Run the matrix by tox, which asks for a recent Python itself."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 10))"
    for name in (sys.executable, "python3.13", "python3.12", "python3.11", "python3.10"):
        found = shutil.which(name)
        if found and subprocess.call([found, "-c", new_enough], stderr=subprocess.DEVNULL) == 0:
            break
    else:
        sys.exit("tox needs a Python 3.10 or later on PATH")
    venv, result = ROOT / ".tox" / "run", ROOT / ".tox" / "result.json"
    python = str(venv / BIN / "python")
    subprocess.check_call([found, "-m", "venv", "--clear", str(venv)])
    subprocess.check_call([python, "-m", "pip", "install", "--quiet", "tox", "tox-uv"])
    for report in ROOT.glob(".tox/*/junit.xml"):
        report.unlink()
    command = [python, "-m", "tox", "run-parallel", "--parallel-no-spinner", "--result-json", str(result)]
    environment = dict(os.environ, UV_PYTHON_DOWNLOADS="never")
    status = subprocess.call(command + arguments, cwd=str(ROOT), env=environment)
    outcomes = json.loads(result.read_text())["testenvs"] if result.exists() else {}
    # Without a result: a cell that was not asked for, or the one that builds the wheel.
    counts = [counts_of_tox(name, found) for name, found in outcomes.items() if "result" in found]
    if status and not sum(failed for _, failed, _ in counts):
        print("tox failed outside of its cells")
        counts.append((0, 1, 0))
    return counts


def main(arguments):
    began = time.time()
    counts = run_matrix(arguments[1:]) if arguments[:1] == ["--matrix"] else run_here(arguments)
    passed, failed, skipped = (sum(column) for column in zip(*(counts or [(0, 0, 0)])))
    print("%d minutes" % ((time.time() - began + 59) // 60))
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
