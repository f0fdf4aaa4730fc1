"""Measures saltern beside LMCache's own adapters, in rounds, with the device's ceiling between them.

Each adapter has a process and a directory of its own (worker.py), and does the same waves of objects. In each round of a phase the
ceiling comes first, then the adapters, each time beginning with another one; before each turn everything that waits to be written
is written, and a turn that stores ends when all of it is on the device, the ceiling's too: what an adapter leaves to the page cache
or to the drive's is not free. Figures are medians over the rounds. Objects that are loaded are compared, outside of what is timed.

On ext4, files made within minutes of the deletion of many others nearby cost several times as much. So all that is measured as a first
fill comes before anything is deleted, and directories are spread over the disk (chattr +T on their parent, where it can be set).

Phases: fresh (a first fill), load (random order), lookup (batches of 128 present keys, one at a time), steady (at capacity: as many
objects are deleted as are stored, and both are timed).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

import contestants
import report

HERE = Path(__file__).resolve().parent
SALTERN = os.environ.get("SALTERN", "saltern")

KIB, MIB = 1024, 1024**2
PHASES = ("fresh", "load", "lookup", "steady")

#: Keys of one task.
TASK_KEYS = 32

LOOKUP_KEYS = 128
LOOKUPS_A_ROUND = 200

#: Objects that the ceiling has in flight, as `saltern bench` does.
CEILING_DEPTH = 32
CEILING_BYTES_IN_FLIGHT = 32 * MIB

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000


@dataclass
class Shape:
    """How the objects of one size are cut into tasks and waves."""

    object_bytes: int
    task_keys: int
    tasks: int

    @classmethod
    def of(cls, object_bytes: int, wave_bytes: int) -> "Shape":
        task_keys = max(1, min(TASK_KEYS, wave_bytes // object_bytes))
        return cls(object_bytes, task_keys, max(1, wave_bytes // object_bytes // task_keys))

    @property
    def wave(self) -> int:
        return self.task_keys * self.tasks


class Process:
    """A process that answers JSON lines."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        self._is_ready = False

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args[0]} has ended:\n{self._log.read_text()[-2000:]}")
        return line

    def ask(self, **question: Any) -> dict[str, Any]:
        # Awaited here, so that all processes start at once.
        if not self._is_ready:
            self._answer()
            self._is_ready = True
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=120)


@dataclass
class Round:
    """One adapter's turn in one round."""

    objects: int
    seconds: float
    cpu_seconds: float
    ceiling: dict[str, float] | None
    waves: list[float]
    problems: list[str]
    #: Of ``seconds``, what it took after the last wave until everything was on the device.
    settle_seconds: float = 0.0


@dataclass
class Contest:
    """The adapters on objects of one size."""

    shape: Shape
    objects: int
    first: int = 0
    next: int = 0
    results: dict[tuple[str, str], list[Round]] = field(default_factory=dict)


class Bench:
    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments = arguments
        self.scratch = scratch
        ceiling = [SALTERN, "ceiling", "--dir", str(scratch), "--total", str(arguments.total * MIB)]
        worker = [sys.executable, str(HERE / "worker.py")]
        self.workers = {name: Process(worker, scratch / f"{name}.log") for name in arguments.adapters}
        self.ceiling = Process(ceiling, scratch / "ceiling.log")
        self.turn = 0
        self.status: dict[str, Any] = {}

    def contest(self, object_bytes: int) -> Contest:
        shape = Shape.of(object_bytes, self.arguments.wave * MIB)
        waves = max(self.arguments.rounds, self.arguments.total * MIB // object_bytes // shape.wave)
        waves -= waves % self.arguments.rounds
        objects = waves * shape.wave
        for name, worker in self.workers.items():
            path = self.scratch / f"{name}-{object_bytes}"
            path.mkdir()
            spec = contestants.spec(name, path, objects * object_bytes, self.arguments.options)
            worker.ask(do="open", object_bytes=object_bytes, spec=spec, num_keys=shape.task_keys, in_flight=shape.tasks)
        return Contest(shape, objects)

    def ceiling_of(self, shape: Shape, overwrite: bool, objects: int) -> dict[str, float]:
        settle()
        depth = min(CEILING_DEPTH, max(4, CEILING_BYTES_IN_FLIGHT // shape.object_bytes))
        question = {"overwrite": overwrite, "object_bytes": shape.object_bytes, "objects": objects}
        answer = self.ceiling.ask(**question, depth=depth, buffers=shape.wave)
        if overwrite:
            answer["seconds"] += settle()
        return answer

    def turns(
        self, contest: Contest, phase: str, rounds: list[dict[str, Any]], objects: int, overwrite: bool | None
    ) -> None:
        """Every adapter does every round; ``overwrite`` says which ceiling is beside it, if any."""
        names, object_bytes = list(self.workers), contest.shape.object_bytes
        for question in rounds:
            ceiling = None if overwrite is None else self.ceiling_of(contest.shape, overwrite, objects)
            self.turn += 1
            for at in range(len(names)):
                name = names[(at + self.turn) % len(names)]
                settle()
                answer = self.workers[name].ask(object_bytes=object_bytes, **question)
                settled = settle() if overwrite else 0.0
                contest.results.setdefault((phase, name), []).append(to_round(answer, objects, ceiling, settled))
            progress(f"{phase} {report.size_name(contest.shape.object_bytes)}")

    def fresh(self, contest: Contest) -> None:
        count = contest.objects // self.arguments.rounds
        rounds = [{"do": "store", "first": start, "count": count} for start in range(0, contest.objects, count)]
        self.turns(contest, "fresh", rounds, count, True)
        contest.next = contest.objects

    def load(self, contest: Contest) -> None:
        numbers = list(range(contest.first, contest.next))
        random.Random(self.arguments.seed).shuffle(numbers)
        count = contest.objects // self.arguments.rounds
        rounds = [{"do": "load", "numbers": numbers[at : at + count]} for at in range(0, len(numbers), count)]
        self.turns(contest, "load", rounds, count, False)

    def lookup(self, contest: Contest) -> None:
        batch = min(LOOKUP_KEYS, contest.objects)
        question = {"do": "lookup", "first": contest.first, "live": contest.objects, "batch": batch}
        rounds = [{**question, "rounds": LOOKUPS_A_ROUND, "seed": seed} for seed in range(self.arguments.rounds)]
        self.turns(contest, "lookup", rounds, batch * LOOKUPS_A_ROUND, None)

    def steady(self, contest: Contest) -> None:
        # A wave that is not timed: from then on whatever an adapter keeps of what it deletes is there.
        for worker in self.workers.values():
            worker.ask(object_bytes=contest.shape.object_bytes, **self._displace(contest, contest.shape.wave))
        self._displaced(contest, contest.shape.wave)
        count = contest.objects // self.arguments.rounds
        for _ in range(self.arguments.rounds):
            self.turns(contest, "steady", [self._displace(contest, count)], count, True)
            self._displaced(contest, count)

    @staticmethod
    def _displace(contest: Contest, count: int) -> dict[str, Any]:
        return {"do": "displace", "first": contest.next, "count": count, "victim": contest.first}

    @staticmethod
    def _displaced(contest: Contest, count: int) -> None:
        contest.first += count
        contest.next += count

    def run(self) -> list[Contest]:
        try:
            contests = [self.contest(size) for size in self.arguments.sizes]
            for phase in ("fresh", "load", "lookup"):
                for contest in contests:
                    if phase in self.arguments.phases or phase == "fresh":
                        getattr(self, phase)(contest)
            if "steady" in self.arguments.phases:
                for contest in contests:
                    self.steady(contest)
            if "saltern" in self.arguments.adapters:
                self.status = self.workers["saltern"].ask(do="status", object_bytes=contests[0].shape.object_bytes)
        finally:
            for process in (*self.workers.values(), self.ceiling):
                process.close()
        return contests


def settle() -> float:
    """Waits until everything that was written is on the device; gives the seconds that took."""
    begun = time.perf_counter()
    os.sync()
    return time.perf_counter() - begun


def progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}\x1b[K", end="", file=sys.stderr, flush=True)


def to_round(
    answer: dict[str, Any], objects: int, ceiling: dict[str, float] | None, settled: float
) -> Round:
    problems = []
    for what, count in (
        ("tasks timed out", answer["timed_out"]),
        ("objects were not done", objects - answer["good"]),
        ("objects had wrong bytes", answer["wrong"]),
    ):
        if count:
            problems.append(f"{count} {what}")
    seconds = sum(answer["waves"]) + settled
    return Round(objects, seconds, answer["cpu_seconds"], ceiling, answer["waves"], problems, settled)


@contextlib.contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="saltern-peers-", dir=parent))
    spread(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def spread(path: Path) -> None:
    """Asks the file system to place what is made in this directory all over the disk; best effort."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("i", 0)))[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags | FS_TOPDIR_FL))
    except OSError:
        pass
    finally:
        os.close(fd)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--dir", type=Path, default=Path("."), help="where the scratch directory is made")
    sizes = lambda text: [int(one) * KIB for one in text.split(",")]  # noqa: E731
    parser.add_argument("--sizes-kib", type=sizes, default="64,256,1024,4096", dest="sizes", help="object sizes")
    parser.add_argument("--total", type=int, default=512, metavar="MIB", help="objects of each size, for each adapter (default 512)")
    parser.add_argument("--rounds", type=int, default=4)
    wave = "what is in flight: LMCache's bench submits a wave, then waits for all of it (default 64)"
    parser.add_argument("--wave", type=int, default=64, metavar="MIB", help=wave)
    parser.add_argument("--phases", type=listed, default="fresh,load,lookup,steady", help="fresh always runs")
    parser.add_argument("--adapters", type=listed, default=",".join(contestants.ALL))
    parser.add_argument("--options", type=json.loads, default="{}", metavar="JSON", help="more options for saltern's mounts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("peers.json"))
    parser.add_argument("--report", type=Path, default=Path("peers.html"), metavar="HTML")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.adapters if name not in contestants.ALL]:
        parser.error(f"there is no adapter {unknown[0]}; there are {', '.join(contestants.ALL)}")
    if unknown := [name for name in arguments.phases if name not in PHASES]:
        parser.error(f"there is no phase {unknown[0]}; there are {', '.join(PHASES)}")
    return arguments


def main() -> None:
    arguments = parse()
    started = time.time()
    with scratch_directory(arguments.dir.resolve()) as scratch:
        bench = Bench(arguments, scratch)
        contests = bench.run()
    results = [
        report.result(contest, phase, name)
        for contest in contests
        for phase in PHASES
        for name in arguments.adapters
        if (phase, name) in contest.results
    ]
    found = report.whole(SALTERN, started, arguments.dir.resolve(), bench.status, results)
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(subprocess.run([SALTERN, "bench", "--from", str(arguments.json), "--report", str(arguments.report)]).returncode)


if __name__ == "__main__":
    main()
