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
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PUBLISHED = ["CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "src", "tests"]
# What decides on the result otherwise: the time of a build, and where Python looks for packages.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "SOURCE_DATE_EPOCH", "HTTPX_CANCEL_SAFE", "AUTOWRAPT"))
}


def run(*command, **changes):
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=changes.pop("cwd", None),
        env=dict(ENVIRONMENT, **changes),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(folder, source, *options, **changes):
    """Return the wheel and, unless `options` leave it out, the sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", folder, source]
    run(*command, **changes)
    return sorted(folder.iterdir())


def content(paths):
    return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, made from the sdist, and the sdist."""
    return build(tmp_path_factory.mktemp("dist"), ROOT)


def test_the_names(built):
    import httpx_cancel_safe

    name = "httpx_cancel_safe-" + httpx_cancel_safe.__version__
    assert [path.name for path in built] == [name + "-py3-none-any.whl", name + ".tar.gz"]


def test_the_same_bytes_twice(built, tmp_path):
    assert content(build(tmp_path, ROOT)) == content(built)


def test_the_same_wheel_without_an_sdist(built, tmp_path):
    assert content(build(tmp_path, ROOT, "--wheel")) == content(built[:1])


def test_the_same_bytes_from_another_checkout_with_the_time_of_the_commit(tmp_path):
    other = tmp_path / "checkout"
    other.mkdir()
    for name in PUBLISHED:
        if (ROOT / name).is_dir():
            # Not copy2: a checkout has times of its own.
            shutil.copytree(ROOT / name, other / name, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(ROOT / name, other / name)
    here = build(tmp_path / "here", ROOT, SOURCE_DATE_EPOCH="1700000000")
    there = build(tmp_path / "there", other, SOURCE_DATE_EPOCH="1700000000")
    assert content(here) == content(there)


def test_nothing_in_the_wheel_but_the_package(built):
    package = ROOT / "src" / "httpx_cancel_safe"
    modules = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.*")}
    modules = {name for name in modules if "__pycache__" not in name}
    assert "httpx_cancel_safe/py.typed" in modules
    about = built[0].name.replace("-py3-none-any.whl", ".dist-info/")
    files = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"]
    with zipfile.ZipFile(built[0]) as wheel:
        assert set(wheel.namelist()) == modules | {about + name for name in files}


def test_nothing_in_the_sdist_but_the_sources(built):
    with tarfile.open(built[1]) as sdist:
        names = {tuple(name.split("/")[1:]) for name in sdist.getnames()}
    assert {name[0] for name in names} == {"PKG-INFO", *PUBLISHED}
    assert not [name for name in names if name[-1].endswith((".pyc", ".xml"))]


def test_the_metadata(built):
    with zipfile.ZipFile(built[0]) as wheel:
        about = built[0].name.replace("-py3-none-any.whl", ".dist-info/METADATA")
        metadata = email.message_from_bytes(wheel.read(about))
    assert metadata["Name"] == "httpx-cancel-safe"
    assert metadata["Requires-Python"] == PROJECT["requires-python"] == ">=3.6"
    assert metadata.get_all("Requires-Dist") == PROJECT["dependencies"]
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_pypi_would_take_it(built):
    run(sys.executable, "-m", "twine", "check", "--strict", *built)


# The oldest, as on RHEL 8, and this one.
@pytest.mark.parametrize(
    "python, pip", [("python3.6", "pip<22"), (sys.executable, "pip")], ids=["oldest", "this"]
)
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
    # A warning remains: nobody has switched the net on in this environment.
    assert report.splitlines()[-1] == "Nothing failed, but see what is marked warn."
