"""``lmcache server`` with our plugin, driven by ``lmcache bench server`` on the CPU: checksums, restarts, kills, quotas."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import saltern
from cli import Cli

PATIENCE_S = 120

#: A small KV cache; 512 tokens of it are two chunks.
SHAPE = "(2,256,16,4,64):float16:4"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """The daemon in a process of its own, on loopback."""

    def __init__(
        self, cli: Cli, directory: Path, *, capacity_gb: float = 1, eviction: dict[str, object] | None = None
    ) -> None:
        self.cli = cli
        self.log = directory / "server.log"
        self.rpc = f"tcp://127.0.0.1:{free_port()}"
        self.url = f"http://127.0.0.1:{free_port()}"
        spec = {
            "type": "plugin",
            "module_path": "saltern.lmcache",
            "class_name": "SalternL2Adapter",
            "adapter_params": {"base_path": str(directory / "objects"), "max_capacity_gb": capacity_gb},
            "eviction": eviction or {"eviction_policy": "LRU"},
        }
        command = ["lmcache", "server", "--host", "127.0.0.1", "--port", self.rpc.rsplit(":", 1)[1]]
        command += ["--http-host", "127.0.0.1", "--http-port", self.url.rsplit(":", 1)[1]]
        command += ["--l1-size-gb", "0.25", "--no-l1-use-lazy", "--chunk-size", "256", "--eviction-policy", "LRU"]
        command += ["--l2-adapter", json.dumps(spec)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            try:
                if self.get("/healthcheck"):
                    return
            except OSError:
                time.sleep(0.2)

    def request(self, method: str, path: str, body: object = None) -> object:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def get(self, path: str) -> object:
        return self.request("GET", path)

    def status(self) -> dict:
        """What our adapter says of itself, through the daemon."""
        [adapter] = self.get("/status")["storage_manager"]["l2_adapters"]
        return adapter

    def clear_l1(self) -> None:
        self.cli.check("kvcache", "clear", "--url", self.url)

    def bench(self, start: int, end: int, salt: str = "") -> Bench:
        program = ["bench", "server", "--rpc-url", self.rpc, "--url", self.url, "--mode", "cpu"]
        program += ["--transfer-mode", "lmcache_driven", "--num-tokens", "512", "--kvcache-shape-spec", SHAPE]
        program += ["--start", str(start), "--end", str(end), "--interval", "0.1"]
        return Bench(self.cli.check(*program, salt=salt))

    def stop(self, by: signal.Signals) -> None:
        self.process.send_signal(by)
        self.process.wait(timeout=PATIENCE_S)


class Bench:
    """What the client printed."""

    def __init__(self, output: str) -> None:
        self.output = output
        #: Checksums by request (`0/warm`); a cold request that hits has none.
        self.checksums = dict(re.findall(r"\[seq (\d+/\w+)\] CHECKSUM: (.+)", output))
        self.matches = len(re.findall(r"CHECKSUM MATCH OK", output))
        #: Hit chunks by request.
        self.hits = dict(re.findall(r"\[seq (\d+/\w+)\] LOOKUP: *(\d+/\d+)", output))

    def warm(self) -> dict[str, str]:
        return {request: checksum for request, checksum in self.checksums.items() if request.endswith("warm")}

    def check(self, requests: int, cold: str) -> None:
        """Every request matched, and its cold lookup hit this much."""
        assert "MISMATCH" not in self.output
        assert len(self.warm()) == requests, self.output
        # What a cold miss stores is compared by the client; what a cold hit loads, by our caller with what was stored.
        assert self.matches == (requests if cold.startswith("0/") else 0), self.output
        assert [hits for request, hits in self.hits.items() if request.endswith("cold")] == [cold] * requests, self.output


def eventually(ask):
    end = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.1)
    return answer


@pytest.fixture
def start(cli, directory):
    servers = []

    def starter(**options) -> Server:
        servers.append(Server(cli, directory, **options))
        return servers[-1]

    yield starter
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def test_checksums_match_through_l2_and_restarts(start, directory) -> None:
    server = start()
    first = server.bench(0, 2)
    first.check(2, "0/2")
    eventually(lambda: server.status()["objects"] == 4)
    used = server.status()["used_bytes"]
    assert used == sum(path.stat().st_size for path in directory.glob("objects/*.data"))
    server.clear_l1()
    loaded = server.bench(0, 2)
    loaded.check(2, "2/2")
    assert loaded.warm() == first.warm()
    assert server.status()["counters"]["loads"] >= 4, "from L2"
    for stop in (signal.SIGTERM, signal.SIGKILL):
        server.stop(stop)
        server = start()
        status = server.status()
        assert (status["objects"], status["used_bytes"]) == (4, used), "usage is right at once"
        again = server.bench(0, 2)
        again.check(2, "2/2")
        assert again.warm() == first.warm()
        assert server.status()["counters"]["loads"] >= 4, "from L2"
        assert server.status()["counters"]["stores"] == 0
    server.stop(signal.SIGTERM)
    # A smaller capacity: what was recovered is evicted, and the server goes on.
    server = start(capacity_gb=used / 1024**3, eviction={"eviction_policy": "LRU", "eviction_ratio": 0.5})
    eventually(lambda: server.status()["used_bytes"] <= used // 2)
    server.bench(5, 6).check(1, "0/2")
    assert server.get("/status")["is_healthy"] is True


def test_quotas_over_http_isolate_two_salts(start) -> None:
    isolated = {"eviction_policy": "IsolatedLRU", "trigger_watermark": 0.8, "eviction_ratio": 0.5}
    server = start(eviction=isolated)
    for salt, gb in (("large", 1), ("small", 1)):
        assert server.request("PUT", f"/quota/{salt}", {"limit_gb": gb})["status"] == "ok"
    kept = server.bench(0, 2, "large")
    kept.check(2, "0/2")
    server.bench(0, 2, "small").check(2, "0/2")
    eventually(lambda: server.status()["objects"] == 8)
    used = server.get("/quota/large")["current_usage_gb"]
    assert used == server.get("/quota/small")["current_usage_gb"] == server.status()["used_bytes"] / 2 / 1024**3
    # Now one is over its quota, and only that one loses objects.
    assert server.request("PUT", "/quota/small", {"limit_gb": used / 2})["status"] == "ok"
    eventually(lambda: server.get("/quota/small")["current_usage_gb"] < used)
    assert server.get("/quota/large")["current_usage_gb"] == used
    server.clear_l1()
    again = server.bench(0, 2, "large")
    again.check(2, "2/2")
    assert again.warm() == kept.warm()


def test_a_directory_is_inspected_by_the_plain_api_after_the_server(start, directory) -> None:
    server = start()
    server.bench(0, 1).check(1, "0/2")
    eventually(lambda: server.status()["objects"] == 2)
    with pytest.raises(saltern.VolumeOwned, match=str(server.process.pid)):
        saltern.Engine(directory / "objects", lock_wait_s=0.1)
    server.stop(signal.SIGTERM)
    with saltern.Engine(directory / "objects") as engine:
        found = list(engine.list())
        assert len(found) == 2
        assert all(len(engine.load(key)) == size for key, size in found)
    assert os.path.isdir(directory / "objects" / ".saltern")
