"""One kind of adapter in a process of its own, under the loops of ``lmcache bench l2``.

Commands come as JSON lines on standard input, answers go as JSON lines to standard output. A kind has its process for itself, with
an adapter for each object size, so that the CPU time of a phase is its own, its threads and the interpreter included.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sys
import time
from typing import Any, Callable

import torch
from lmcache.cli.commands.bench.l2_adapter_bench.data import make_aligned_tensor, make_memory_objects
from lmcache.cli.commands.bench.l2_adapter_bench.result import BenchResult
from lmcache.cli.commands.bench.l2_adapter_bench.runner import bench_load, bench_lookup, bench_store
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class

ALIGN = 4096
MODEL = "meta-llama/Llama-3.1-8B"
RANK = ObjectKey.ComputeKVRank(1, 0, 1, 0)

#: Bytes at the head of each payload that say whose it is.
STAMP = 8


def key(number: int) -> ObjectKey:
    return ObjectKey(hashlib.sha256(b"%d" % number).digest(), MODEL, RANK)


class Metered:
    """An adapter that notes when the first task of a round comes in: what the loop does before is not the adapter's."""

    def __init__(self, adapter) -> None:
        for name in dir(adapter):
            if not name.startswith("_"):
                setattr(self, name, getattr(adapter, name))
        for name in ("submit_store_task", "submit_load_task", "submit_lookup_and_lock_task", "delete"):
            setattr(self, name, self._noting(getattr(adapter, name)))
        self.begun: float | None = None

    def _noting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            if self.begun is None:
                self.begun = time.process_time()
            return call(*args)

        return noted


class Stage:
    """An adapter, and memory for a wave of objects of one size to store and one to load."""

    def __init__(self, *, spec: str, object_bytes: int, num_keys: int, in_flight: int) -> None:
        self.object_bytes, self.num_keys, self.in_flight = object_bytes, num_keys, in_flight
        self.wave = num_keys * in_flight
        half = self.wave * object_bytes
        memory = make_aligned_tensor(2 * half, ALIGN)
        # As the daemon describes an arena that it has allocated whole.
        description = L1MemoryDesc(memory.data_ptr(), 2 * half, ALIGN, 2 * half)
        parts = json.loads(spec)
        config = get_l2_adapter_config_class(parts.pop("type")).from_dict(parts)
        self.adapter = create_l2_adapter(config, l1_memory_desc=description)
        self.metered = Metered(self.adapter)
        self.sources = self._objects(memory, 0)
        self.targets = self._objects(memory, half)
        generator = torch.Generator().manual_seed(1)
        memory[:half] = torch.randint(0, 256, (half,), dtype=torch.uint8, generator=generator)

    def _objects(self, memory: torch.Tensor, offset: int) -> list[list]:
        bytes_each = self.num_keys * self.object_bytes
        return [
            make_memory_objects(memory, self.num_keys, self.object_bytes, offset + number * bytes_each)
            for number in range(self.in_flight)
        ]

    def _batches(self, keys: list[ObjectKey]) -> list[list[ObjectKey]]:
        return [keys[start : start + self.num_keys] for start in range(0, self.wave, self.num_keys)]

    def _waves(self, numbers: list[int]) -> list[list[int]]:
        assert len(numbers) % self.wave == 0, "a part of a wave"
        return [numbers[start : start + self.wave] for start in range(0, len(numbers), self.wave)]

    def _timed(self, totals: dict[str, Any], run: Callable[[], BenchResult]) -> None:
        """Adds one wave to ``totals``."""
        self.metered.begun = None
        result = run()
        ended = time.process_time()
        totals["cpu_seconds"] += ended - (self.metered.begun or ended)
        totals["waves"] += [round(seconds, 9) for seconds in result.round_durations]
        totals["good"] += result.total_success
        totals["timed_out"] += result.timed_out_rounds

    def _store(self, wave: list[int]) -> BenchResult:
        keys = self._batches([key(number) for number in wave])
        return bench_store(
            self.metered, self.in_flight, self.num_keys, self.object_bytes, 1, lambda _: keys, lambda _: self.sources, silent
        )

    def _stamp(self, wave: list[int]) -> None:
        for number, source in zip(wave, flat(self.sources)):
            source.raw_data[:STAMP] = torch.frombuffer(bytearray(number.to_bytes(STAMP, "big")), dtype=torch.uint8)

    def store(self, first: int, count: int) -> dict[str, Any]:
        totals = new_totals()
        for wave in self._waves(list(range(first, first + count))):
            self._stamp(wave)
            self._timed(totals, lambda: self._store(wave))
        return totals

    def displace(self, first: int, count: int, victim: int) -> dict[str, Any]:
        """Stores at capacity: before each wave as many of the oldest objects are deleted, as part of what is timed."""
        totals = new_totals()
        numbers = list(range(first, first + count))
        for at, wave in enumerate(self._waves(numbers)):
            self._stamp(wave)
            oldest = [key(victim + at * self.wave + number) for number in range(self.wave)]

            def run() -> BenchResult:
                begun = time.perf_counter()
                for batch in self._batches(oldest):
                    self.metered.delete(batch)
                deleted = time.perf_counter() - begun
                result = self._store(wave)
                result.round_durations[:] = [seconds + deleted for seconds in result.round_durations]
                return result

            self._timed(totals, run)
        return totals

    def load(self, numbers: list[int]) -> dict[str, Any]:
        totals = new_totals()
        for wave in self._waves(numbers):
            keys = self._batches([key(number) for number in wave])

            def run() -> BenchResult:
                return bench_load(
                    self.metered, self.in_flight, self.num_keys, self.object_bytes, 1, lambda _: keys, lambda _: self.targets, silent
                )

            self._timed(totals, run)
            totals["wrong"] += self._wrong(wave)
        return totals

    def _wrong(self, wave: list[int]) -> int:
        """Objects of the wave that are not what was stored: the number at the head, then the payload of its slot."""
        sources = flat(self.sources)
        wrong = 0
        for number, target in zip(wave, flat(self.targets)):
            source = sources[number % self.wave].raw_data
            is_it = bytes(target.raw_data[:STAMP].numpy()) == number.to_bytes(STAMP, "big")
            wrong += not (is_it and torch.equal(target.raw_data[STAMP:], source[STAMP:]))
        return wrong

    def lookup(self, first: int, live: int, batch: int, rounds: int, seed: int) -> dict[str, Any]:
        """One batch at a time, as the daemon's prefetch asks for a request; pins are released outside of what is timed."""
        chance = random.Random(seed)
        totals = new_totals()
        for _round in range(rounds):
            start = first + chance.randrange(max(1, live - batch + 1))
            keys = [key(number) for number in range(start, start + batch)]

            def run() -> BenchResult:
                return bench_lookup(self.metered, 1, batch, 1, lambda _: [keys], silent)

            self._timed(totals, run)
            self.adapter.submit_unlock(keys)
        return totals

    def status(self) -> dict[str, Any]:
        return self.adapter.report_status()


def flat(batches: list[list]) -> list:
    return [one for batch in batches for one in batch]


def new_totals() -> dict[str, Any]:
    return {"waves": [], "cpu_seconds": 0.0, "good": 0, "timed_out": 0, "wrong": 0}


def silent(_: str) -> None:
    pass


def main() -> None:
    logging.disable(logging.WARNING)
    # Adapters print; only answers may reach whoever commands.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Buffers are filled and compared between rounds; torch's helpers would spin on into what is timed.
    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), file=answers)
    stages: dict[int, Stage] = {}
    for line in sys.stdin:
        command = json.loads(line)
        do, object_bytes = command.pop("do"), command.pop("object_bytes")
        if do == "open":
            stages[object_bytes] = Stage(object_bytes=object_bytes, **command)
            answer: dict[str, Any] = {}
        else:
            answer = getattr(stages[object_bytes], do)(**command)
        print(json.dumps(answer), file=answers)
    for stage in stages.values():
        stage.adapter.close()


if __name__ == "__main__":
    main()
