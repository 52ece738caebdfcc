"""Run small programs in processes of their own, with an environment of their own."""

import os
import subprocess
import sys
import textwrap


def environment(**changes):
    """The environment of this process without what would switch the net on or off, and with `changes`."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HTTPX_CANCEL_SAFE", "AUTOWRAPT_BOOTSTRAP", "NO_COLOR")
    }
    found.update(changes)
    return found


def with_start_up(folder, code, **modules):
    """Have every new process run `code` first, and find `modules` (name and code); a PYTHONPATH."""
    for name, content in dict(modules, sitecustomize=code).items():
        (folder / (name + ".py")).write_text(textwrap.dedent(content))
    return os.pathsep.join([str(folder)] + os.environ.get("PYTHONPATH", "").split(os.pathsep))


def run(*arguments, **options):
    """Run Python with these arguments and return what it printed and its status."""
    return subprocess.run(
        [sys.executable] + list(arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=100,
        env=environment(**options),
    )


def run_code(code, *flags, **options):
    """The same for code that must succeed; returns what it printed, in words."""
    done = run(*(list(flags) + ["-c", textwrap.dedent(code)]), **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
