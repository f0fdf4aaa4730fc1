"""What the suite shares: a directory on a real file system, and the two mounts."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Iterator

import pytest
from cli import Cli
from daemon import Arena, Driver
from saltern.lmcache import SalternL2Adapter

#: On the repository's file system: /tmp may be tmpfs, which has neither O_DIRECT nor attributes.
SCRATCH = Path(__file__).resolve().parents[2] / "target" / "mount"


@pytest.fixture
def directory() -> Iterator[Path]:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=SCRATCH))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """LMCache's command line."""
    cli = Cli(tmp_path_factory.mktemp("cli"))
    yield cli
    cli.close()


@pytest.fixture
def arena() -> Arena:
    return Arena(64 << 20)


@pytest.fixture
def open_adapter(directory: Path, arena: Arena) -> Iterator[Callable[..., Driver]]:
    """Opens our adapter as the daemon does; closes what is still open at the end."""
    opened: list[Driver] = []

    def opener(*, registered: bool = True, path: os.PathLike[str] | None = None, **options: object) -> Driver:
        params = {"base_path": str(path or directory / "objects"), **options}
        adapter = SalternL2Adapter(params, l1_memory_desc=arena.description(registered))
        driver = Driver(adapter, arena)
        opened.append(driver)
        return driver

    yield opener
    for driver in opened:
        driver.adapter.close()
