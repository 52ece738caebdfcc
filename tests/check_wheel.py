"""What is published: the same bytes from the same source, nothing else in it, and it works by itself.

Not named test_*: it needs the packages of the cell "wheel", and a package index.
"""

import email
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import httpx_cancel_safe

ROOT = pathlib.Path(__file__).parent.parent
PUBLISHED = ["CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "src", "tests"]
NAME = "httpx_cancel_safe-" + httpx_cancel_safe.__version__


def run(*command, cwd=None, **changes):
    output = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=dict(os.environ, **changes), **output)
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(folder, source, **changes):
    """Return the wheel, made from the sdist, and the sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, **changes)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"), ROOT)


def test_the_same_bytes_from_another_checkout_with_the_time_of_the_commit(tmp_path):
    other, ignored = tmp_path / "checkout", shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, other, ignore=ignored, copy_function=shutil.copyfile)  # Not copy2: it has times of its own.
    here = build(tmp_path / "here", ROOT, SOURCE_DATE_EPOCH="1700000000")
    there = build(tmp_path / "there", other, SOURCE_DATE_EPOCH="1700000000")
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


def test_nothing_in_them_but_the_package_and_its_sources(built):
    assert [path.name for path in built] == [NAME + "-py3-none-any.whl", NAME + ".tar.gz"]
    package = ROOT / "src" / "httpx_cancel_safe"
    files = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.*")}
    files = {name for name in files if "__pycache__" not in name}
    assert "httpx_cancel_safe/py.typed" in files
    for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"):
        files.add("%s.dist-info/%s" % (NAME, name))
    with zipfile.ZipFile(built[0]) as wheel:
        assert set(wheel.namelist()) == files
    with tarfile.open(built[1]) as sdist:
        names = {tuple(name.split("/")[1:]) for name in sdist.getnames()}
    assert {name[0] for name in names} == {"PKG-INFO", *PUBLISHED}
    assert not [name for name in names if name[-1].endswith((".pyc", ".xml"))]


def test_the_metadata(built):
    with zipfile.ZipFile(built[0]) as wheel:
        metadata = email.message_from_bytes(wheel.read(NAME + ".dist-info/METADATA"))
        entry_points = wheel.read(NAME + ".dist-info/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Requires-Python"]) == ("httpx-cancel-safe", ">=3.6")
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    # What autowrapt looks for: the module whose import calls the hook.
    assert "[httpx_cancel_safe]\nhttpx=httpx_cancel_safe.auto:patch_on_import\n" in entry_points
    run(sys.executable, "-m", "twine", "check", "--strict", *built)


# The oldest, as on RHEL 8, and this one.
@pytest.mark.parametrize("python, pip", [("python3.6", "pip<22"), (sys.executable, "pip")], ids=["oldest", "this"])
def test_it_works_where_the_sources_are_out_of_reach(built, python, pip, tmp_path):
    if shutil.which(python) is None or subprocess.call([python, "--version"]):
        pytest.skip("no %s on this machine" % python)
    run(python, "-m", "venv", tmp_path / "venv")
    inside = tmp_path / "venv" / "bin" / "python"
    run(inside, "-m", "pip", "install", "--upgrade", pip)
    # trio 0.24 and later do not work with anyio 3, which is what httpx 0.22 wants.
    run(inside, "-m", "pip", "install", built[0], "httpx==0.22.0", "trio<0.24", cwd=tmp_path)

    code = "import httpx_cancel_safe.auto; print(httpx_cancel_safe.auto.__file__)"
    found = run(inside, "-c", code, cwd=tmp_path)
    assert pathlib.Path(found.strip()).is_relative_to(tmp_path)
    report = run(inside, "-m", "httpx_cancel_safe", cwd=tmp_path)
    assert "httpx                   0.22.0, affected" in report
    # A warning remains: nobody patches httpx in this environment.
    assert report.splitlines()[-1] == "Nothing failed, but see what is marked warn."
