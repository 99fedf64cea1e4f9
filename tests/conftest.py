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


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a made-up `log.csv` of 6,000 rows, its `schema.toml`, and the data set `log`."""
    from rankloom.config import to_toml
    from rankloom.data.prepare import prepare
    from rankloom.data.synthetic import SyntheticConfig, synthetic_table_schema, write_csv

    folder = tmp_path_factory.mktemp("small_log")
    config = SyntheticConfig(num_users=60, num_items=40, vocabularies=(20, 10), history_length=5)
    write_csv(folder / "log.csv", config, rows=6_000)
    schema = synthetic_table_schema(config, "log.csv", conversion=False)
    (folder / "schema.toml").write_text(to_toml(schema), encoding="utf-8")
    prepare(folder / "schema.toml", folder / "log")
    return folder
