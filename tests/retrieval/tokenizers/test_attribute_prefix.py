import numpy as np
import pytest
import torch

from rankloom.retrieval.collisions import ReassignConfig, group_sizes
from rankloom.retrieval.protocols import FittedTokenizer, TokenizerItems
from rankloom.retrieval.tokenizers.attribute_prefix import AttributePrefix, AttributePrefixConfig
from rankloom.retrieval.tokenizers.state import load_state

CONFIG = AttributePrefixConfig(attributes=("department", "category"), level_sizes=(4, 3))


def catalogue(num_items: int = 80) -> TokenizerItems:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (num_items, 3), generator=generator)
    vectors = torch.randn(num_items, 5, generator=generator) + 3 * values[:, :1]
    return TokenizerItems(vectors, values, ("category", "colour", "department"))


def fitted(items: TokenizerItems, config: AttributePrefixConfig = CONFIG) -> AttributePrefix:
    tokenizer = config.build(items.vectors.shape[1])
    tokenizer.fit(items, torch.Generator().manual_seed(1))
    return tokenizer


def test_ids_begin_with_the_attributes_and_go_on_with_residuals() -> None:
    items = catalogue()
    tokenizer = fitted(items)
    assert isinstance(tokenizer, FittedTokenizer)
    assert tokenizer.level_sizes == (4, 4, 4, 3)
    assignment = tokenizer.assign(items.vectors)
    assert items.attributes is not None
    wanted = items.attributes[:, [2, 0]].numpy()
    assert (assignment.codes[:, :2] == wanted).all()
    for row in range(0, 80, 9):
        mates = torch.from_numpy((wanted == wanted[row]).all(1))
        mean = items.vectors[mates].mean(0)
        residual = items.vectors[row] - mean
        total = mean
        for level in (2, 3):
            centres = tokenizer.code_vectors(level)
            code = int((centres - residual).norm(dim=1).argmin())
            assert assignment.codes[row, level] == code
            residual = residual - centres[code]
            total = total + centres[code]
        torch.testing.assert_close(assignment.reconstruction[row], total)


def test_equal_vectors_keep_their_own_attributes() -> None:
    items = TokenizerItems(torch.ones(3, 2), torch.tensor([[1], [0], [2]]), ("department",))
    tokenizer = fitted(items, AttributePrefixConfig(attributes=("department",), level_sizes=(2,)))
    assert tokenizer.assign(items.vectors).codes[:, 0].tolist() == [1, 0, 2]
    assert tokenizer.level_sizes == (3, 2)


def test_new_items_get_the_attributes_of_the_nearest_mean() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0]])
    items = TokenizerItems(vectors, torch.tensor([[3], [3], [1], [1]]), ("department",))
    tokenizer = fitted(items, AttributePrefixConfig(attributes=("department",), level_sizes=(2,)))
    codes = tokenizer.assign(torch.tensor([[1.0, 0.9], [8.0, 0.1]])).codes
    assert codes[:, 0].tolist() == [3, 1]
    # Above and below the mean is one code under either department.
    old = tokenizer.assign(vectors).codes
    assert codes[:, 1].tolist() == [old[1, 1], old[0, 1]] == [old[3, 1], old[2, 1]]
    torch.testing.assert_close(
        tokenizer.code_vectors(0),
        torch.tensor([[0.0, 0.0], [9.0, 0.5], [0.0, 0.0], [0.0, 0.5]]),
    )


def test_collisions_can_be_reassigned() -> None:
    items = catalogue()
    tokenizer = fitted(items, CONFIG.model_copy(update={"level_sizes": (1, 20)}))
    before = tokenizer.assign(items.vectors)
    assert group_sizes(before.codes).max() > 1
    resolved = ReassignConfig(overflow="error").resolve(before, tokenizer, items.vectors)
    assert group_sizes(resolved.codes).max() == 1
    assert (resolved.codes[:, :3] == before.codes[:, :3]).all()


def test_one_item_and_state() -> None:
    one = TokenizerItems(
        torch.ones(1, 5), torch.tensor([[2, 1, 0]]), ("a", "category", "department")
    )
    assert fitted(one).assign(one.vectors).codes[0, :2].tolist() == [0, 1]
    items = catalogue()
    tokenizer, again = fitted(items), CONFIG.build(5)
    load_state(again, tokenizer.state_dict())
    new = torch.cat([items.vectors, torch.randn(9, 5)])
    assert again.level_sizes == tokenizer.level_sizes
    np.testing.assert_array_equal(again.assign(new).codes, tokenizer.assign(new).codes)


def test_items_without_the_attributes_are_refused() -> None:
    items = catalogue()
    with pytest.raises(ValueError, match="side fields department, brand; got category, colour"):
        fitted(items, AttributePrefixConfig(attributes=("department", "brand")))
    with pytest.raises(ValueError, match="got none"):
        fitted(TokenizerItems(items.vectors))
    with pytest.raises(ValueError, match="attribute_prefix needs at least one item; got none"):
        fitted(TokenizerItems(torch.ones(0, 5)))
