"""A worker process: one library, one model, kept warm, measured on demand.

The parent starts one worker per library and alternates between them, so that all of them meet the
same state of the machine. A worker waits without using the processor, reads one JSON command per
line from stdin and answers with one JSON line. Standard library only: it runs in every environment.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

ANSWERS = "BENCHMARK_ANSWERS"
"""Environment variable with the file descriptor that answers go to."""


def serve(commands: dict[str, Callable[[], Answer]]) -> None:
    """Answer commands from stdin until it closes; what a library prints goes to the log."""
    answers = os.fdopen(int(os.environ[ANSWERS]), "w")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        name = json.loads(line)["command"]
        start = time.perf_counter()
        answer = commands[name]()
        answer.setdefault("seconds", time.perf_counter() - start)
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The parent's handle of a worker process."""

    def __init__(self, python: Path, module: str, arguments: dict[str, Any], log: Path) -> None:
        answers, theirs = os.pipe()
        environment = os.environ | {
            ANSWERS: str(theirs),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": str(arguments["threads"]),
        }
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(python), "-P", "-m", module, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs,),
            text=True,
            env=environment,
        )
        os.close(theirs)
        self._answers = os.fdopen(answers)
        self.name = log.stem
        self._read()

    def ask(self, command: str) -> Answer:
        """Run one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._answers.close()
        self._log.close()

    def _read(self) -> Answer:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"worker {self.name} ended; its log: {self._log.name}")
        answer: Answer = json.loads(line)
        return answer
