from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rankloom.data.examples import example_schema, random_batch
from rankloom.layers.scenarios import (
    ScenarioEmbedding,
    ScenarioRows,
    choose,
    num_known,
    scenario_of,
    with_unknown,
)

OUTPUTS = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 9.0]])  # [batch, scenarios]


def test_choose_takes_the_own_scenario_and_the_mean_for_the_unknown_one() -> None:
    scenario = torch.tensor([2, 0, 1], dtype=torch.int32)
    assert choose(OUTPUTS, scenario).tolist() == [5.0, 3.0, 3.0]
    wide = torch.stack([OUTPUTS, 10 * OUTPUTS], -1)  # [batch, scenarios, tasks]
    assert choose(wide, scenario).tolist() == [[5.0, 50.0], [3.0, 30.0], [3.0, 30.0]]


def test_values_behind_their_mean() -> None:
    assert with_unknown(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).tolist() == [[2, 4], [1, 2], [3, 6]]
    embedding = ScenarioEmbedding(2, 3)
    found = embedding(torch.tensor([0, 2, 2], dtype=torch.int32))
    torch.testing.assert_close(found[0], embedding.weight.mean(0))
    torch.testing.assert_close(found[1:], embedding.weight[[1, 1]])


@pytest.mark.parametrize(
    "scenario", [[1, 3, 1, 3, 3], [2, 0, 1, 0], [0], [], [3, 2, 1], [1, 1]], ids=str
)
@pytest.mark.parametrize("traced", [False, True])
def test_rows_come_back_in_their_place(
    scenario: list[int], traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    index = torch.tensor(scenario, dtype=torch.int32)
    x = torch.randn(len(scenario), 2, requires_grad=True)
    rows = ScenarioRows.of(index, 3)

    def give(part: Tensor, number: int) -> Tensor:
        return part * (number + 1) + number

    merged = rows.merge([give(part, number) for number, part in enumerate(rows.split(x))])
    expected = [
        give(x[row], known - 1)
        if known
        else torch.stack([give(x[row], number) for number in range(3)]).mean(0)
        for row, known in enumerate(scenario)
    ]
    torch.testing.assert_close(merged, torch.stack(expected) if expected else torch.empty(0, 2))
    merged.sum().backward()
    factor = [[float(known or 2)] * 2 for known in scenario]  # the mean of 1, 2 and 3
    torch.testing.assert_close(x.grad, torch.tensor(factor).view(-1, 2))


def test_every_scenario_gets_its_own_rows_and_those_of_the_unknown_one() -> None:
    rows = ScenarioRows.of(torch.tensor([1, 0, 2, 1]), 3)
    assert [own.tolist() for own in rows.rows()] == [[0, 1, 3], [1, 2], [1]]


def test_data_without_scenarios_are_refused() -> None:
    schema = example_schema()
    with pytest.raises(ValueError, match=r"name their column in roles\.scenario"):
        num_known(schema)
    batch = replace(random_batch(schema, 2), scenario=None)
    with pytest.raises(ValueError, match="got a batch without them"):
        scenario_of(batch)
    assert num_known(example_schema(num_scenarios=4)) == 3
