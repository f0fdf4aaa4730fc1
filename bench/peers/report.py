"""What was measured, as the report of ``saltern bench`` has it: bench/src/report.rs names the fields."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import contestants

if TYPE_CHECKING:
    from peers import Contest, Round

KIB, MIB, GB = 1024, 1024**2, 1e9

QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))


def size_name(size: int) -> str:
    return f"{size // MIB}MiB" if size % MIB == 0 else f"{size // KIB}KiB"


def rate(one: Round) -> float:
    return one.objects / one.seconds


def result(contest: Contest, phase: str, name: str) -> dict[str, Any]:
    """The result of one adapter; rates are medians over the rounds."""
    rounds, size = contest.results[phase, name], contest.shape.object_bytes
    moves = phase != "lookup"
    objects_per_s = statistics.median(rate(one) for one in rounds)
    cpu_per_object = statistics.median(one.cpu_seconds / one.objects for one in rounds)
    problems = [problem for one in rounds for problem in one.problems]
    found: dict[str, Any] = dict.fromkeys(ABSENT)
    found.update(
        engine=name,
        phase=phase,
        variant=None if moves else "present",
        layout="fs",
        object_bytes=size,
        objects=sum(one.objects for one in rounds),
        depth=contest.shape.wave if moves else 1,
        rounds=len(rounds),
        seconds=round(sum(one.seconds for one in rounds), 6),
        settle_seconds=round(sum(one.settle_seconds for one in rounds), 6),
        objects_per_s=round(objects_per_s, 1),
        latency_us=latencies([seconds for one in rounds for seconds in one.waves]),
        cpu_seconds=round(sum(one.cpu_seconds for one in rounds), 6),
        vs_best_peer=versus_best(contest, phase, name, objects_per_s),
        verified_bytes=sum(one.objects for one in rounds) * size if phase == "load" else 0,
        errors=len(problems),
        error_examples=problems[:5],
        ratio_rounds=[],
    )
    if moves:
        found["mib_per_s"] = round(objects_per_s * size / MIB, 1)
        found["cpu_seconds_per_gb"] = round(cpu_per_object / size * GB, 4)
        found.update(ceiling(rounds, size))
    else:
        found["keys_per_s"] = round(objects_per_s, 1)
        found["keys_per_cpu_s"] = round(1 / cpu_per_object, 1)
    return found


#: Fields of the report that some results have not.
ABSENT = (
    "mib_per_s cpu_seconds_per_gb ceiling_mib_per_s ceiling_cpu_seconds_per_gb ceiling_reused_mib_per_s ratio vs_baseline recycled "
    "spare_bytes load_latency_us idle_load_latency_us device_load_latency_us device_idle_load_latency_us keys_per_s keys_per_cpu_s scan_seconds"
).split()


def ceiling(rounds: list[Round], size: int) -> dict[str, Any]:
    beside = [one.ceiling for one in rounds]
    ratios = [rate(one) * size / (one.ceiling["bytes"] / one.ceiling["seconds"]) for one in rounds]
    return {
        "ceiling_mib_per_s": round(statistics.median(one["bytes"] / one["seconds"] for one in beside) / MIB, 1),
        "ceiling_cpu_seconds_per_gb": round(statistics.median(one["cpu_seconds"] / one["bytes"] for one in beside) * GB, 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_rounds": [round(ratio, 3) for ratio in ratios],
    }


def latencies(waves: list[float]) -> dict[str, float]:
    us = sorted(seconds * 1e6 for seconds in waves) or [0.0]
    return {name: round(us[min(len(us) - 1, int(len(us) * share))], 1) for name, share in QUANTILES}


def versus_best(contest: Contest, phase: str, name: str, own: float) -> float | None:
    """Its rate by that of the best of LMCache's own."""
    if name in contestants.PEERS:
        return None
    peers = [rounds for (of, peer), rounds in contest.results.items() if of == phase and peer in contestants.PEERS]
    rates = [statistics.median(rate(one) for one in rounds) for rounds in peers]
    return round(own / max(rates), 3) if rates else None


def machine() -> dict[str, Any]:
    fields: dict[str, str] = {}
    for path in ("/proc/cpuinfo", "/proc/meminfo"):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return {
        "cpu": fields.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memory_bytes": int(fields.get("MemTotal", "0 kB").split()[0]) * KIB,
    }


def volume(status: dict[str, Any], directory: Path) -> dict[str, Any]:
    shards, on = status.get("shards") or [{}], (status.get("volumes") or [{}])[0]
    return {
        "dir": str(directory),
        "fs": on.get("file_system", ""),
        "direct_io": on.get("direct_io", True),
        "memory_align_bytes": on.get("memory_align_bytes", 0),
        "offset_align_bytes": on.get("offset_align_bytes", 0),
        "fixed_buffers": shards[0].get("fixed_buffers", ""),
        "durability": status.get("durability", "none"),
        "integrity": status.get("integrity", "store"),
        "ring": shards[0].get("ring", []),
        "shards": len(shards),
        "segment_bytes": MIB,
    }


NOTES = [
    "bench/peers: latencies are those of whole waves and of lookups of 128 keys; objects are submitted in tasks of 32, as "
    "`lmcache bench l2` does, whose loops these are. LMCache's adapters: O_DIRECT, and their defaults else. CPU time is that of the "
    "process, the Python interpreter included.",
    "steady: the time of the deletions is part of it.",
]


def whole(saltern: str, started: float, directory: Path, status: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The report."""
    version = subprocess.run([saltern, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    return {
        "schema": 1,
        "version": version,
        "started_unix_seconds": int(started),
        "seconds": round(time.time() - started, 3),
        "machine": machine(),
        "volume": volume(status, directory),
        "results": results,
        "notes": NOTES,
    }
