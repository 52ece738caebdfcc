"""Run small programs in processes of their own, with an environment of their own."""

import os
import subprocess
import sys
import textwrap

# For programs that cannot import a module.
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name == %r:
            raise ModuleNotFoundError("No module named " + name, name=name)

sys.meta_path.insert(0, Without())
"""


def environment(**changes):
    """The environment of this process without what would patch or not, and with `changes`."""
    unset = ("HTTPX_CANCEL_SAFE", "AUTOWRAPT_BOOTSTRAP")
    return dict({name: value for name, value in os.environ.items() if name not in unset}, **changes)


def with_start_up(folder, code, **modules):
    """Have every new process run `code` first, and find `modules` (name and code); a PYTHONPATH."""
    for name, content in dict(modules, sitecustomize=code).items():
        (folder / (name + ".py")).write_text(textwrap.dedent(content))
    return os.pathsep.join([str(folder)] + os.environ.get("PYTHONPATH", "").split(os.pathsep))


def as_installed(folder):
    """Have this package count as installed, as autowrapt asks for; a PYTHONPATH."""
    import httpx_cancel_safe

    version = httpx_cancel_safe.__version__
    about = folder / ("httpx_cancel_safe-%s.dist-info" % version)
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: httpx-cancel-safe\nVersion: %s\n" % version)
    hook = "[httpx_cancel_safe]\nhttpx = httpx_cancel_safe.auto:patch_on_import\n"
    (about / "entry_points.txt").write_text(hook)
    package = os.path.dirname(os.path.dirname(httpx_cancel_safe.__file__))
    return os.pathsep.join([str(folder), package] + os.environ.get("PYTHONPATH", "").split(os.pathsep))


def run(*arguments, **options):
    """Run Python with these arguments and return what it printed and its status."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    return subprocess.run([sys.executable, *arguments], env=environment(**options), timeout=100, **output)


def run_code(code, *flags, **options):
    """The same for code that must succeed; returns what it printed, in words."""
    done = run(*(list(flags) + ["-c", textwrap.dedent(code)]), **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def contents():
    """What every class and module of httpx and httpcore holds at this moment."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] not in ("httpx", "httpcore", "httpx2", "httpcore2"):
            continue
        for name, value in list(vars(module).items()):
            found[module_name, name] = value
            if isinstance(value, type) and value.__module__.startswith("http"):
                for attribute, content in list(vars(value).items()):
                    found[module_name, value.__name__, attribute] = content
    return found


def changed(before):
    """The modules and classes, and what in them, that hold another object than `before`."""
    now = contents()
    return {key for key in set(before) | set(now) if before.get(key, before) is not now.get(key, now)}
