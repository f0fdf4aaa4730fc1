"""The plain Python API."""

from __future__ import annotations

import doctest
import gc
import subprocess
import sys
import threading
import time

import numpy
import pytest
import saltern
import torch
from saltern import _engine


@pytest.fixture
def engine(directory):
    with saltern.Engine(directory / "objects", max_capacity_gb=1) as engine:
        yield engine


def keys_of(count: int, salt: str = "") -> list[saltern.Key]:
    return [saltern.Key("m", number.to_bytes(32, "big"), cache_salt=salt) for number in range(count)]


def test_the_examples_run(directory, monkeypatch) -> None:
    monkeypatch.chdir(directory)
    for module in (saltern, _engine):
        failed, attempted = doctest.testmod(module)
        assert attempted > 0 and failed == 0


@pytest.mark.parametrize(
    "data",
    [
        numpy.arange(100_000, dtype=numpy.float32).reshape(100, 1000),
        torch.arange(50_000, dtype=torch.bfloat16).reshape(2, -1),
        bytearray(range(256)) * 64,
        memoryview(b"0123456789" * 500)[10:],
        numpy.frombuffer(b"read only memory", dtype=numpy.uint8),
    ],
    ids=["numpy", "torch", "bytearray", "memoryview", "read-only"],
)
def test_any_memory_is_stored_and_loaded(engine, data) -> None:
    [key] = keys_of(1)
    if isinstance(data, torch.Tensor):
        expected, into = data.view(torch.uint8).numpy().tobytes(), torch.zeros_like(data)
    else:
        expected = memoryview(data).cast("B").tobytes() if memoryview(data).contiguous else None
        into = numpy.zeros_like(data) if isinstance(data, numpy.ndarray) else bytearray(len(expected))
    assert engine.store(key, data) == len(expected)
    assert engine.load(key, into=into) is into
    raw = into.view(torch.uint8).numpy().tobytes() if isinstance(into, torch.Tensor) else bytes(memoryview(into).cast("B"))
    assert raw == expected
    assert bytes(engine.load(key)) == expected


def test_other_threads_go_on_while_memory_is_registered(engine) -> None:
    memory = numpy.ones(512 << 20, dtype=numpy.uint8)
    moments: list[float] = []
    done = threading.Event()

    def note() -> None:
        while not done.wait(0.0005):
            moments.append(time.perf_counter())

    noting = threading.Thread(target=note)
    noting.start()
    try:
        begun = time.perf_counter()
        with engine.register(memory) as registered:
            took = time.perf_counter() - begun
            assert registered.is_registered and registered.nbytes == memory.nbytes
            # At its ends the interpreter may switch, whoever has the GIL.
            assert any(begun + took / 4 < moment < begun + 3 * took / 4 for moment in moments), took
            [key] = keys_of(1)
            engine.store(key, memory[: 4 << 20])
            memory[4 << 20 : 8 << 20] = 0
            engine.load(key, into=memory[4 << 20 : 8 << 20])
            assert (memory == 1).all()
    finally:
        done.set()
        noting.join()


def test_memory_that_is_not_one_writable_block_is_refused(engine) -> None:
    [key] = keys_of(1)
    with pytest.raises((ValueError, BufferError)):
        engine.store(key, numpy.zeros((8, 8))[:, ::2])
    with pytest.raises(ValueError, match="contiguous"):
        engine.store(key, torch.zeros(8, 8).t())
    with pytest.raises(TypeError):
        engine.store(key, "text")
    engine.store(key, b"1234")
    with pytest.raises(BufferError):
        engine.load(key, into=b"1234")


def test_errors_are_exceptions(engine, directory) -> None:
    first, second = keys_of(2)
    with pytest.raises(saltern.NotFound):
        engine.load(first)
    engine.store(first, b"12345678")
    with pytest.raises(saltern.WrongSize, match="8"):
        engine.load(first, into=bytearray(9))
    with pytest.raises(saltern.InvalidKey, match="@"):
        saltern.Key("a@b", b"h")
    with pytest.raises(saltern.InvalidKey):
        engine.store(saltern.Key("a-SEP-b", b"h"), b"1")
    with pytest.raises(saltern.VolumeOwned, match="pid"):
        saltern.Engine(directory / "objects", lock_wait_s=0.1)
    with pytest.raises(saltern.ConfigError, match="sharsd"):
        saltern.Engine(directory / "other", sharsd=3)
    with pytest.raises(saltern.IoError) as raised:
        saltern.Engine("/proc/nothing/here")
    assert raised.value.errno > 0
    assert engine.lookup([first, second], pin=True) == [8, None]
    [refused, missing] = engine.delete([first, second])
    assert isinstance(refused, saltern.Pinned) and isinstance(missing, saltern.NotFound)
    assert engine.unpin([first]) == 1
    assert engine.delete([first]) == [8]
    with pytest.raises(ValueError, match="2 keys but 1"):
        engine.store_many([first, second], [b"1"])
    assert issubclass(saltern.Full, saltern.SalternError)
    engine.close()
    with pytest.raises(saltern.Closed):
        engine.store(first, b"1")


def test_a_full_engine_says_so_and_batches_go_on(directory) -> None:
    with saltern.Engine(directory / "small", max_capacity_gb=10_000 / 1024**3) as engine:
        results = engine.store_many(keys_of(3), [b"x" * 4000] * 3)
        assert results[:2] == [4000, 4000] and isinstance(results[2], saltern.Full)
        usage = engine.usage()
        assert (usage.total_bytes_used, usage.total_capacity_bytes) == (8000, 10_000)
        assert usage.usage_fraction == 0.8


def test_objects_are_there_after_a_restart(directory) -> None:
    keys = keys_of(5, "salt")
    with saltern.Engine(directory / "objects") as engine:
        engine.store_many(keys, [bytes([number]) * 1000 for number in range(5)])
    with saltern.Engine(directory / "objects") as engine:
        assert engine.lookup(keys) == [1000] * 5
        assert engine.usage().bytes_by_cache_salt == {"salt": 5000}
        assert dict(engine.list("m")) == {key: 1000 for key in keys}
        assert list(engine.list("n")) == []
        buffers = [bytearray(1000) for _ in keys]
        assert engine.load_many(keys, buffers) == [1000] * 5
        assert buffers == [bytes([number]) * 1000 for number in range(5)]


def test_keys_are_values() -> None:
    key = saltern.Key("m/n", b"\x01" * 32, 0x02010201, 3, "s")
    assert (key.model_name, key.chunk_hash, key.kv_rank, key.object_group_id, key.cache_salt) == (
        "m/n",
        b"\x01" * 32,
        0x02010201,
        3,
        "s",
    )
    same = saltern.Key("m/n", b"\x01" * 32, 0x02010201, 3, "s")
    assert key == same and hash(key) == hash(same) and len({key, same}) == 1
    assert key != saltern.Key("m/n", b"\x01" * 32, 0x02010201, 3, "t")


def test_other_threads_run_while_one_waits(engine) -> None:
    """The GIL is released around waits: else a load could not end while a thread that holds it spins."""
    keys = keys_of(64)
    assert all(size == 1 << 20 for size in engine.store_many(keys, [bytes(1 << 20)] * 64))
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counted[0]
        assert engine.load_many(keys, [bytearray(1 << 20) for _ in keys]) == [1 << 20] * 64
        assert counted[0] > before
    finally:
        stop.set()
        thread.join()


def test_memory_in_use_is_kept_alive(engine) -> None:
    keys = keys_of(50)
    for number, key in enumerate(keys):
        engine.store_many([key], [bytearray(b"z" * 70_000)])
        if number % 10 == 0:
            gc.collect()
    assert all(bytes(engine.load(key)) == b"z" * 70_000 for key in keys)


def test_an_interpreter_that_ends_without_close_ends(directory) -> None:
    program = (
        "import saltern, sys\n"
        "engine = saltern.Engine(sys.argv[1])\n"
        "engine.store(saltern.Key('m', b'h' * 32), b'data')\n"
        "print(engine.lookup([saltern.Key('m', b'h' * 32)]))\n"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program, str(directory / "objects")], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "[4]\n", "")


def test_quotas_are_set_and_kept(directory) -> None:
    with saltern.Engine(directory / "objects") as engine:
        assert engine.set_quota("tenant", 10_000) is None
        assert engine.set_quota("tenant", 5000) == 10_000
        assert engine.quotas() == {"tenant": 5000}
        [key, other] = keys_of(2, "tenant")
        engine.store(key, bytes(4000))
        with pytest.raises(saltern.OverQuota):
            engine.store(other, bytes(4000))
        with pytest.raises(saltern.InvalidKey):
            engine.set_quota("a/b", 1)
    with saltern.Engine(directory / "objects") as engine:
        assert engine.quotas() == {"tenant": 5000}
        assert engine.set_quota("tenant", None) == 5000
        assert engine.store(other, bytes(4000)) == 4000
