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


def counts_of(report, is_success):
    """What a cell counts: passed, failed, skipped. One that failed outside of its tests, or ran none, has failed."""
    passed, failed, skipped = int(is_success), 0, 0  # A cell without pytest, like lint.
    if report.exists():
        suite = next(ET.parse(str(report)).iter("testsuite"))
        total, failures, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
        # pytest counts a test that fails in its teardown, too, once more as an error.
        failed = failures + errors
        passed = max(total - failed - skipped, 0)
    return passed, failed or int(not (passed and is_success)), skipped


def run_cell(cell, arguments):
    """Run the tests of one cell; what they count."""
    venv = ROOT / ".venvs" / ("%d.%d-%s" % (THIS + (cell.replace(" ", "-"),)))
    venv.parent.mkdir(exist_ok=True)
    log_path, report = (venv.with_name(venv.name + suffix) for suffix in (".log", ".xml"))
    if report.exists():
        report.unlink()
    with log_path.open("w") as log:
        try:
            run_pytest(cell, venv, log, report, arguments)
            problem = ""
        except RuntimeError as exc:
            problem = str(exc)
    counts = counts_of(report, not problem)
    print("%s: %d passed, %d failed, %d skipped (%s)" % ((cell,) + counts + (log_path,)), flush=True)
    if problem:
        print("\n".join([problem] + log_path.read_text().splitlines()[-100:]), flush=True)
    return counts


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


def run_matrix(arguments):
    """Run the matrix by tox, which asks for a recent Python itself."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 10))"  # pyenv has names on PATH that it then refuses.
    names = [sys.executable, "python3.13", "python3.12", "python3.11", "python3.10"]
    found = [name for name in filter(shutil.which, names) if subprocess.call([name, "-c", new_enough]) == 0]
    if not found:
        sys.exit("tox needs a Python 3.10 or later on PATH")
    venv, result = ROOT / ".tox" / "run", ROOT / ".tox" / "result.json"
    python = str(venv / BIN / "python")
    subprocess.check_call([found[0], "-m", "venv", "--clear", str(venv)])
    subprocess.check_call([python, "-m", "pip", "install", "--quiet", "tox", "tox-uv"])
    for report in ROOT.glob(".tox/*/junit.xml"):
        report.unlink()
    command = [python, "-m", "tox", "run-parallel", "--parallel-no-spinner", "--result-json", str(result)]
    environment = dict(os.environ, UV_PYTHON_DOWNLOADS="never")
    status = subprocess.call(command + arguments, cwd=str(ROOT), env=environment)
    cells, counts = json.loads(result.read_text())["testenvs"] if result.exists() else {}, []
    for name in sorted(cells):
        outcome = cells[name].get("result")  # None where it was not asked for, and of what builds the wheel.
        if outcome is not None and outcome["skipped"]:
            print("%s: left out, its Python is not on this machine" % name)
        elif outcome is not None:
            counts.append(counts_of(ROOT / ".tox" / name / "junit.xml", outcome["success"]))
            print("%s: %d passed, %d failed, %d skipped" % ((name,) + counts[-1]))
    if status and not sum(failed for _, failed, _ in counts):
        print("tox failed outside of its cells")
        counts.append((0, 1, 0))
    return counts


def main(arguments):
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    counts = run_matrix(arguments[1:]) if arguments[:1] == ["--matrix"] else run_here(arguments)
    passed, failed, skipped = (sum(column) for column in zip(*(counts or [(0, 0, 0)])))
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
