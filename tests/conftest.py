"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors: more threads only wait for each other (and for the other test workers)."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder with the public data sets, for tests marked `data`."""
    folder = Path(os.environ.get("RANKLOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.fail(f"tests marked data need the data sets; set RANKLOOM_DATA (tried {folder})")
    return folder
