import pytest
import torch
from torch import nn

from rankloom.layers.generated_linear import Conditions, GeneratedLinear, PrecomputedLinear
from rankloom.layers.row_conditions import GroupedRows
from rankloom.scenario.mi_dpg_fusion import Additive


def layer(conditions: Conditions) -> GeneratedLinear:
    fusion = Additive().build(2, 3, 1, by_row=False)
    return GeneratedLinear(nn.Linear(2, 3), fusion, conditions, place=0, name="deep.0")


def test_a_part_alone_has_no_weights() -> None:
    conditions = Conditions()
    with pytest.raises(ValueError, match=r"the weights of deep\.0 depend on the scenario; call"):
        layer(conditions)(torch.ones(2, 2))
    conditions.give(GroupedRows([2], [0]), [torch.zeros(1, 1)])
    assert layer(conditions)(torch.ones(2, 2)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"deep\.0 is called with 6 rows for a batch of 2, so"):
        layer(conditions)(torch.ones(6, 2))
    conditions.take_back()
    with pytest.raises(ValueError, match="call the whole model"):
        PrecomputedLinear(torch.ones(1, 3, 2), None, conditions, "deep.1")(torch.ones(2, 2))


def test_weights_that_other_code_reads_are_not_there() -> None:
    with pytest.raises(AttributeError, match="weight"):
        _ = layer(Conditions()).weight
