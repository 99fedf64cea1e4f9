"""The machine and the versions that a result was measured on."""

import platform
import time
from pathlib import Path
from typing import Any


def describe_machine(threads: int) -> dict[str, Any]:
    """Facts that every result file carries."""
    import torch

    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpu": _cpu_name(), "threads": threads, "platform": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
