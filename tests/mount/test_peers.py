"""``bench/peers``, tiny: so that it cannot rot. Its figures mean nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release" / "saltern"

ADAPTERS = ["saltern", "saltern-native", "lmcache-fs", "lmcache-fs-native", "lmcache-nixl-dynamic"]


def is_built() -> bool:
    """Whether the command line is there, and not older than what is asked of it."""
    return BINARY.exists() and subprocess.run([str(BINARY), "ceiling", "--help"], capture_output=True).returncode == 0


@pytest.mark.skipif(not is_built(), reason="needs `cargo build --release`")
def test_every_adapter_takes_part_in_every_phase(directory) -> None:
    command = [sys.executable, str(REPOSITORY / "bench" / "peers" / "peers.py"), "--dir", str(directory)]
    command += ["--sizes-kib", "64,256", "--total", "8", "--wave", "4", "--rounds", "2"]
    command += ["--json", str(directory / "peers.json"), "--report", str(directory / "peers.html")]
    environment = {**os.environ, "SALTERN": str(BINARY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = json.loads((directory / "peers.json").read_text())
    found = {(one["phase"], one["object_bytes"], one["engine"]) for one in report["results"]}
    phases = ["fresh", "load", "lookup", "steady"]
    assert found == {(phase, size << 10, name) for phase in phases for size in (64, 256) for name in ADAPTERS}
    assert all(one["errors"] == 0 and one["objects_per_s"] > 0 for one in report["results"])
    assert all(one["vs_best_peer"] is not None for one in report["results"] if one["engine"].startswith("saltern"))
    assert max(len(line) for line in done.stdout.splitlines() if "note:" not in line) <= 100
    assert (directory / "peers.html").read_text().count("<svg") == 2 * 3
    # The scratch directory is gone.
    assert sorted(path.name for path in directory.iterdir()) == ["peers.html", "peers.json"]
