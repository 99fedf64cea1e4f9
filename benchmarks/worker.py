"""A worker process: one library, one model, kept warm, measured on demand.

The parent starts one worker per library and alternates between them, so that all of them meet the
same state of the machine. A worker waits without using the processor, reads one JSON command per
line from stdin and answers with one JSON line. Standard library only: it runs in every environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

ANSWERS = "BENCHMARK_ANSWERS"
"""Environment variable with the file descriptor that answers go to."""


class Channel:
    """The worker's end: commands in, answers out; what a library prints goes to the log."""

    def __init__(self) -> None:
        self._answers = os.fdopen(int(os.environ[ANSWERS]), "w")
        self.answer({"ready": True})

    def next(self) -> tuple[str, dict[str, Any]] | None:
        """Wait for the next command and its arguments; None when the parent is done."""
        while line := sys.stdin.readline():
            arguments: dict[str, Any] = json.loads(line)
            command = str(arguments.pop("command"))
            if command != "memory":  # the same in every worker
                return command, arguments
            self.answer({"peak_memory_bytes": peak_resident_bytes()})
        return None

    def answer(self, answer: Answer) -> None:
        """Answer the command."""
        print(json.dumps(answer), file=self._answers, flush=True)


def peak_resident_bytes() -> int:
    """Highest resident memory of this process so far, mapped files included.

    Not `getrusage`: its figure starts at the size of the process that forked this one.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def serve(commands: dict[str, Callable[..., Answer]]) -> None:
    """Answer commands until the parent is done."""
    channel = Channel()
    while (request := channel.next()) is not None:
        name, arguments = request
        channel.answer(commands[name](**arguments))


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

    def wait(self) -> None:
        """Wait until it is ready. Workers that start together wait together."""
        self._read()

    def ask(self, command: str, **arguments: Any) -> Answer:
        """Run one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
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
