"""The stubs say what the native module has, and what the package says of itself passes a type checker."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files

import pytest

pytest.importorskip("mypy")

#: Uses what users use; a wrong type in it would be an error, and so would one that is missed.
PROGRAM = """
import saltern
from saltern import Engine, Key, Usage

with Engine("objects", max_capacity_gb=1) as engine:
    key = Key("model", b"hash", cache_salt="tenant")
    stored: int = engine.store(key, b"data")
    results: list[int | saltern.SalternError] = engine.store_many([key], [b"data"])
    found: list[int | None] = engine.lookup([key], pin=True)
    released: int = engine.unpin([key])
    usage: Usage = engine.usage()
    fraction: float = usage.usage_fraction
    listed: list[tuple[Key, int]] = list(engine.list())
    quota: int | None = engine.set_quota("tenant", 5)
    pages: saltern.Pages = saltern.Pages([(4096, 10)], device=0, stream=1, owner=key)
    known: saltern.Registered = engine.register(bytearray(10))
    wrong: str = engine.store(key, b"data")
"""


def mypy(directory, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MYPY_CACHE_DIR": str(directory / "cache")}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=directory, env=environment)


def test_the_stubs_are_those_of_the_module(directory) -> None:
    # That a class of C cannot be a base beside another is no news to whoever writes Python.
    done = mypy(directory, "mypy.stubtest", "--ignore-disjoint-bases", "saltern._saltern")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_program_is_checked(directory) -> None:
    (directory / "program.py").write_text(PROGRAM)
    done = mypy(directory, "mypy", "--strict", "program.py")
    lines = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(lines) == 1 and "program.py:17" in lines[0] and "[assignment]" in lines[0], done.stdout + done.stderr


def test_the_package_is_marked_as_typed() -> None:
    assert (files("saltern") / "py.typed").is_file()
