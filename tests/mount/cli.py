"""Runs LMCache's commands; see cli_server.py for how."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 120


@dataclass
class Done:
    code: int
    output: str


class Cli:
    def __init__(self, scratch: Path) -> None:
        self._output = scratch / "command.log"
        program = [sys.executable, str(Path(__file__).with_name("cli_server.py"))]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *argv: str, salt: str | None = None) -> Done:
        """Runs ``lmcache`` with these arguments, and waits for it."""
        question = {"argv": list(argv), "salt": salt, "output": str(self._output)}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        assert ready, f"{argv} hangs: {self._output.read_text()[-3000:]}"
        code = int(self._process.stdout.readline())
        return Done(code, self._output.read_text())

    def check(self, *argv: str, salt: str | None = None) -> str:
        """As :meth:`run`; the command has to succeed. Gives what it printed."""
        done = self.run(*argv, salt=salt)
        assert done.code == 0, done.output[-3000:]
        return done.output

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE_S)
