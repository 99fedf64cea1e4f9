"""The peers' own environment, built from the package index."""

import subprocess
import sys
from pathlib import Path

VERSIONS = (
    "deepctr-torch==0.3.0",
    "torch-rechub==0.9.0",
    "fuxictr==2.3.10",
    "keras_preprocessing==1.1.2",  # FuxiCTR imports it and does not declare it
    "polars<1.36",  # FuxiCTR 2.3.10 uses an argument that later ones dropped
    "requests",  # deepctr-torch imports it and does not declare it
    "setuptools",
)

PEER_ENVIRONMENT = Path(__file__).parent / "peers" / ".venv"
"""Where the environment lies."""


def peer_python(folder: Path) -> Path:
    """Make the environment if it is not there, and return its interpreter."""
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if done.exists() and done.read_text() == "\n".join(VERSIONS):
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__.split('+')[0])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    subprocess.run([*pip, f"torch=={torch}"], check=True)  # the same kernels on both sides
    subprocess.run([*pip, f"torch=={torch}", *VERSIONS], check=True)
    done.write_text("\n".join(VERSIONS))
    return python
