"""``lmcache bench l2`` with both mounts: every byte comes back."""

from __future__ import annotations

import json

import pytest

MOUNTS = {
    "plugin": {"type": "plugin", "class_name": "SalternL2Adapter"},
    "native_plugin": {"type": "native_plugin", "class_name": "SalternConnector"},
}


@pytest.mark.parametrize("size_kb", [64, 100, 256, 4096])
@pytest.mark.parametrize("mount", MOUNTS)
def test_the_daemons_bench_verifies(cli, directory, mount: str, size_kb: int) -> None:
    params = {"base_path": str(directory / "objects")}
    spec = {**MOUNTS[mount], "module_path": "saltern.lmcache", "adapter_params": params}
    keys = 32 if size_kb < 1024 else 4
    command = ["bench", "l2", "--l2-adapter", json.dumps(spec), "--num-keys", str(keys), "--in-flight", "2"]
    # 100 KiB is no multiple of a page: its buffers lie at any address.
    command += ["--data-size-kb", str(size_kb), "--l1-align-bytes", "1" if size_kb == 100 else "4096"]
    command += ["--rounds", "2", "--lookup-max-hit-rate", "1.0", "--no-skip-verify"]
    command += ["--format", "json", "--output", str(directory / "result.json")]
    assert f"All {2 * keys} keys data verified OK." in cli.check(*command)
    metrics = json.loads((directory / "result.json").read_text())["metrics"]
    for operation in ("op_0", "op_1", "op_2"):
        assert metrics[operation]["rounds_timed_out"] == 0
        assert metrics[operation]["total_success"] == metrics[operation]["total_keys"] > 0
