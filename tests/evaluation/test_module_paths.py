import pytest
from torch import nn

from rankloom.evaluation.module_paths import SHOWN_PATHS, find_modules, no_such_module


def model() -> nn.Module:
    layer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.ModuleDict({"layers": nn.Sequential(layer, nn.Linear(2, 2)), "head": nn.Linear(2, 1)})


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("head", ["head"]),
        ("layers.?", ["layers.0", "layers.1"]),
        ("layers.*", ["layers.0", "layers.0.0", "layers.0.1", "layers.1"]),
        ("*.1", ["layers.0.1", "layers.1"]),
        ("layers.[0]", ["layers.0"]),
        ("Head", []),
    ],
)
def test_patterns(pattern: str, paths: list[str]) -> None:
    whole = model()
    found = find_modules(whole, pattern)
    assert list(found) == paths
    assert all(found[path] is whole.get_submodule(path) for path in paths)


def test_a_star_fits_the_model_itself_too() -> None:
    whole = model()
    assert find_modules(whole, "*")[""] is whole


def test_the_error_lists_paths() -> None:
    assert str(no_such_module("haed", model())) == (
        "no module fits 'haed'; modules are layers, layers.0, layers.0.0, layers.0.1, layers.1, "
        "head (* stands for any text)"
    )
    many = nn.ModuleList([nn.Linear(1, 1) for _ in range(SHOWN_PATHS + 5)])
    message = str(no_such_module("cross", many))
    assert "and 5 more" in message
    assert len(message) < 300
    assert "modules are none" in str(no_such_module("cross", nn.Linear(1, 1)))
