import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and inputs drawn without a generator are the same in every run."""
    torch.manual_seed(0)
