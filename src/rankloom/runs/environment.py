"""Where a run happens: the machine, the versions, and the exact source that runs."""

import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

import rankloom
from rankloom.config import Config

PACKAGE_FOLDER = Path(rankloom.__file__).parent
"""Folder of the rankloom sources that run."""


class Machine(Config):
    """What the run used of the machine."""

    cpu: str
    """Processor model."""
    cores: int
    """Cores that this process may use."""
    threads: int
    """Threads of torch's operations."""
    memory_bytes: int | None = None
    """Main memory; None where the system does not tell."""
    device: str = "cpu"
    """Device of the model: cpu, cuda or cuda:N."""
    gpu: str | None = None
    """Name of the GPU; None on CPU."""


class Versions(Config):
    """Versions that can move a result."""

    python: str
    """Interpreter."""
    torch: str
    """torch, its build included (2.13.0+cpu)."""
    rankloom: str
    """This package."""


class Commit(Config):
    """The source of rankloom that ran."""

    id: str | None = None
    """Git commit; None when the package does not run from a checkout."""
    dirty: bool = False
    """Whether the package's files differ from that commit."""
    source_hash: str
    """Hash of the package's Python files, which tells changed source with or without git."""


def current_machine(device: str | torch.device = "cpu") -> Machine:
    """The machine this process runs on.

    Args:
        device: device of the model; its GPU is named when it is a CUDA device.
    """
    chosen = torch.device(device)
    return Machine(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=_memory_bytes(),
        device=str(chosen),
        gpu=torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else None,
    )


def current_versions() -> Versions:
    """Versions of the interpreter, torch and rankloom."""
    return Versions(
        python=platform.python_version(),
        torch=torch.__version__,
        rankloom=rankloom.__version__,
    )


def current_commit(folder: str | Path = PACKAGE_FOLDER) -> Commit:
    """Commit and source hash of a package folder; that of rankloom itself by default.

    A package that lies in a checkout without being tracked by it (an environment inside somebody's
    project) has no commit. Only changes inside the folder make it dirty, so that a new recipe or
    an edited page does not.
    """
    package = Path(folder)
    source_hash = _source_hash(package)
    tracked = _git(package, "ls-files", "--", "__init__.py")
    commit = _git(package, "rev-parse", "--verify", "--quiet", "HEAD") if tracked else None
    if not commit:
        return Commit(source_hash=source_hash)
    changes = _git(package, "status", "--porcelain", "--", ".")
    return Commit(id=commit, dirty=bool(changes), source_hash=source_hash)


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, stripped; None when git is missing or refuses."""
    git = shutil.which("git")
    if git is None:
        return None
    result = subprocess.run(
        [git, "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # a read must not lock the index
    )
    return result.stdout.strip() if result.returncode == 0 else None


def _source_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\n{content}\n".encode())
    return digest.hexdigest()[:16]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may allow fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
