"""Memory of GPUs through the plain Python API: what objects say of their memory, and what happens without CUDA.

The bytes go through a driver of software (``gds/tests/fake/cuda.c``), whose device memory is the CPU's.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import saltern

FAKE = Path(__file__).resolve().parents[2] / "gds/tests/fake/cuda.c"


class OnGpu:
    """An array that says it is on a GPU."""

    def __init__(self, array: numpy.ndarray, **changes) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None,
            "stream": None,
            "version": 3,
            **changes,
        }


class DlTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class ByDlpack:
    """An array that says by DLPack that it is on a GPU."""

    def __init__(self, array: numpy.ndarray) -> None:
        self.array = array
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.tensor = DlTensor(array.ctypes.data, 2, 0, array.ndim, 1, array.itemsize * 8, 1, self.shape, None, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None):
        assert stream == 1
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.fixture
def engine(directory):
    with saltern.Engine(directory / "objects") as engine:
        yield engine


@pytest.fixture
def driver(directory, monkeypatch):
    if not shutil.which("cc"):
        pytest.skip("no C compiler to build the driver of software with")
    library = directory / "libfake-cuda.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, FAKE], check=True)
    monkeypatch.setenv("SALTERN_LIBCUDA", str(library))


def key(number: int) -> saltern.Key:
    return saltern.Key("m", number.to_bytes(32, "big"))


@pytest.mark.parametrize("wrap", [OnGpu, ByDlpack])
def test_arrays_on_a_gpu_are_stored_and_loaded(engine, driver, wrap) -> None:
    data = numpy.random.default_rng(1).integers(0, 2**16, (300, 1001), dtype=numpy.uint16)
    assert engine.store(key(1), wrap(data)) == data.nbytes
    on_host = bytearray(data.nbytes)
    engine.load(key(1), into=on_host)
    assert on_host == data.tobytes()
    into = numpy.zeros_like(data)
    engine.load_many([key(1), key(2)], [wrap(into), bytearray(5)])
    assert (into == data).all()
    [device] = engine.status()["devices"]
    [route] = device["routes"]
    assert route["route"] in ("pipeline", "direct") and "Software GPU" in device["name"]


def test_a_batch_may_mix_both_kinds(engine, driver) -> None:
    data = numpy.arange(5000, dtype=numpy.float32)
    assert engine.store_many([key(1), key(2)], [OnGpu(data), data * 2]) == [data.nbytes, data.nbytes]
    first, second = numpy.zeros_like(data), numpy.zeros_like(data)
    assert engine.load_many([key(1), key(2)], [first, OnGpu(second, stream=1)]) == [data.nbytes, data.nbytes]
    assert (first == data).all() and (second == data * 2).all()


def scattered(data: numpy.ndarray, page: int) -> tuple[numpy.ndarray, list[tuple[int, int]]]:
    """A heap with the bytes in every other page of it, the last first, and where they are."""
    content = data.tobytes()
    pages = -(-len(content) // page)
    heap = numpy.full(2 * pages * page, 0xEE, dtype=numpy.uint8)
    places = []
    for number in range(pages):
        part = content[number * page : (number + 1) * page]
        at = 2 * (pages - 1 - number) * page
        heap[at : at + len(part)] = numpy.frombuffer(part, dtype=numpy.uint8)
        places.append((heap.ctypes.data + at, len(part)))
    return heap, places


@pytest.mark.parametrize("page", [1000, 4096, 65536])
def test_objects_are_gathered_from_pages_and_scattered_to_them(engine, driver, page) -> None:
    data = numpy.random.default_rng(page).integers(0, 2**16, 100_003, dtype=numpy.uint16)
    heap, places = scattered(data, page)
    pages = saltern.Pages(places, device=0, stream=1, owner=heap)
    assert (pages.nbytes, len(pages)) == (data.nbytes, len(places))
    assert engine.store(key(1), pages) == data.nbytes
    assert bytes(engine.load(key(1))) == data.tobytes()
    before = heap.copy()
    for address, length in places:
        ctypes.memset(address, 0, length)
    # Beside memory of the host's, and an array on the GPU, in one call.
    on_host, on_gpu = bytearray(data.nbytes), numpy.zeros_like(data)
    loaded = engine.load_many([key(1)] * 3, [pages, on_host, OnGpu(on_gpu)])
    assert loaded == [data.nbytes] * 3
    assert (heap == before).all(), "pages, or bytes between them"
    assert on_host == data.tobytes() and (on_gpu == data).all()


def test_pages_may_be_objects_and_the_driver_is_asked_for_the_gpu(engine, driver) -> None:
    rows = [numpy.full(5000, number, dtype=numpy.uint8) for number in range(6)]
    pages = saltern.Pages([OnGpu(rows[0]), ByDlpack(rows[1]), (rows[2].ctypes.data, 5000)])
    assert engine.store(key(1), pages) == 15_000
    into = saltern.Pages([(row.ctypes.data, 5000) for row in rows[3:]])
    assert engine.load(key(1), into=into) is into
    assert all((ours == theirs).all() for ours, theirs in zip(rows[:3], rows[3:]))


def test_pages_that_cannot_be_are_refused(engine, driver) -> None:
    data = numpy.zeros(8192, dtype=numpy.uint8)
    at = data.ctypes.data
    for pages, reason in (
        ([], "at least one page"),
        ([(at, 0)], "empty"),
        ([(2**64 - 1, 2)], "last address"),
        ([(at, 100), (at + 99, 1)], "overlap"),
        ([(at, 100), b"bytes"], "page 1: neither"),
        ([OnGpu(data, stream=1), OnGpu(data.copy(), stream=2)], "page 1: its stream"),
        ([OnGpu(data, shape=(50,), strides=(16,))], "not one block"),
    ):
        with pytest.raises(ValueError, match=reason):
            saltern.Pages(pages)
    both = saltern.Pages([OnGpu(data, stream=1), OnGpu(data.copy(), stream=2)], stream=2)
    assert engine.store(key(1), both) == 2 * data.nbytes
    with pytest.raises(BufferError, match="read-only"):
        engine.load(key(1), into=saltern.Pages([OnGpu(numpy.zeros(2 * 8192, numpy.uint8), data=(at, True))]))
    # One page too few is another size, and nothing is written.
    with pytest.raises(saltern.WrongSize):
        engine.load(key(1), into=saltern.Pages([(at, 8192)], device=0))


def test_owners_are_kept_until_the_engine_is_done(engine, driver) -> None:
    data = numpy.arange(5000, dtype=numpy.float32)
    owner = OnGpu(data.copy())
    alive = weakref.ref(owner)
    pages = saltern.Pages([(owner.array.ctypes.data, data.nbytes)], owner=owner)
    del owner
    assert engine.store(key(1), pages) == data.nbytes and alive() is not None
    del pages
    # The engine's side gives it up on a thread of its own.
    for _ in range(1000):
        if alive() is None:
            break
        time.sleep(0.01)
    assert alive() is None


def test_memory_is_registered_with_whoever_moves_it(engine, driver) -> None:
    heap = numpy.zeros(1 << 20, dtype=numpy.uint8)
    with engine.register(OnGpu(heap)) as slab:
        # Known to the GPU, and not to cuFile, which is not open here; that is no error.
        assert slab.nbytes == heap.nbytes and not slab.is_registered and "cuFile is not open" in slab.why_not
        assert engine.store(key(1), OnGpu(heap[:5000])) == 5000
    assert not slab.is_registered and "given back" in slab.why_not
    with pytest.raises(ValueError, match="the block that they lie in"):
        engine.register(saltern.Pages([(heap.ctypes.data, 10), (heap.ctypes.data + 20, 10)]))
    on_host = engine.register(heap)
    assert on_host.is_registered and on_host.why_not is None and on_host.nbytes == heap.nbytes
    heap[:5000] = 7
    assert engine.store(key(2), heap[4096 : 4096 + 904]) == 904
    assert engine.load(key(2), into=heap[:904]) is not None and (heap[:904] == 7).all()


def test_memory_that_is_not_one_block_or_not_writable_is_refused(engine, driver) -> None:
    data = numpy.arange(100, dtype=numpy.int64)
    with pytest.raises(ValueError, match="not one block"):
        engine.store(key(1), OnGpu(data, shape=(50,), strides=(16,)))
    assert engine.store(key(1), OnGpu(data, strides=(8,))) == data.nbytes
    with pytest.raises(BufferError, match="read-only"):
        engine.load(key(1), into=OnGpu(data, data=(data.ctypes.data, True)))


def test_without_cuda_the_error_says_so(engine, monkeypatch) -> None:
    monkeypatch.setenv("SALTERN_LIBCUDA", "/no/such/libcuda.so")
    data = numpy.arange(100, dtype=numpy.int64)
    for wrapped in (OnGpu(data), ByDlpack(data)):
        with pytest.raises(saltern.SalternError, match="libcuda.so cannot be loaded"):
            engine.store(key(1), wrapped)
    # Memory of the host's is not touched by that.
    assert engine.store(key(1), data) == data.nbytes


def test_numpy_arrays_are_not_taken_for_the_gpus(engine, monkeypatch) -> None:
    monkeypatch.setenv("SALTERN_LIBCUDA", "/no/such/libcuda.so")
    data = numpy.arange(100, dtype=numpy.int64)
    assert engine.store(key(1), data) == data.nbytes


def test_what_the_interface_may_not_say_is_refused(engine, driver) -> None:
    data = numpy.arange(100, dtype=numpy.int64)
    for changes, reason in (({"mask": OnGpu(data)}, "mask"), ({"stream": 0}, "protocol forbids")):
        with pytest.raises(ValueError, match=reason):
            engine.store(key(1), OnGpu(data, **changes))
    assert engine.lookup([key(1)]) == [None]
    assert engine.store(key(1), OnGpu(data, mask=None, stream=2)) == data.nbytes


class TorchTensor:
    """What of ``torch.Tensor`` is asked for, of a tensor on a GPU: the real one cannot be made without one."""

    def __init__(self, array: numpy.ndarray, index: int = 0) -> None:
        self.array = array
        self.device = SimpleNamespace(type="cuda", index=index)

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize


def test_tensors_of_torch_come_with_the_stream_that_is_current(engine, driver, monkeypatch) -> None:
    asked = []

    def current_stream(device: SimpleNamespace) -> SimpleNamespace:
        asked.append(device.index)
        # The default stream, as PyTorch numbers it.
        return SimpleNamespace(cuda_stream=0)

    monkeypatch.setattr("torch.cuda.current_stream", current_stream)
    data = numpy.random.default_rng(5).integers(0, 2**16, (300, 1001), dtype=numpy.uint16)
    assert engine.store(key(1), TorchTensor(data)) == data.nbytes
    into = numpy.zeros_like(data)
    engine.load(key(1), into=TorchTensor(into))
    assert (into == data).all() and asked == [0, 0]
    with pytest.raises(ValueError, match="not one block"):
        engine.store(key(2), TorchTensor(data[:, ::2]))
    with pytest.raises(saltern.SalternError, match="GPU"):
        engine.store(key(2), TorchTensor(data, index=7))


def test_options_say_how_gpus_are_used(directory, driver) -> None:
    data = numpy.random.default_rng(6).integers(0, 2**16, 1 << 20, dtype=numpy.uint16)
    with saltern.Engine(directory / "objects", gpu_route="pipeline", gpu_chunk_mb=0.25, gpu_transit_mb=1) as engine:
        assert engine.store(key(1), OnGpu(data)) == data.nbytes
        [device] = engine.status()["devices"]
        [route] = device["routes"]
        assert route["route"] == "pipeline" and "asked" in str(route)
    with saltern.Engine(directory / "objects", gpu_route="direct") as engine:
        with pytest.raises(saltern.SalternError, match="direct|cuFile"):
            engine.load(key(1), into=OnGpu(data))
    for options, reason in (
        ({"gpu_route": "teleport"}, "teleport.*pipeline"),
        ({"gpu_chunk_mb": 3}, "power of two"),
        ({"gpu_chunk_mb": 4, "gpu_transit_mb": 8}, "at least"),
    ):
        with pytest.raises(saltern.ConfigError, match=reason):
            saltern.Engine(directory / "objects", **options)
