"""Memory of GPUs through the plain Python API: what objects say of their memory, and what happens without CUDA.

The bytes go through a driver of software (``gds/tests/fake/cuda.c``), whose device memory is the CPU's.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

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
