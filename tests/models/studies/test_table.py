"""Tokens of columns: numbers, categories, and what is not known."""

import torch

from models.studies.attention import MaskedAttention, PlaceTokens
from models.studies.table import NUMERIC, ColumnTokens


def test_tokens_are_as_written():
    torch.manual_seed(0)
    tokens = ColumnTokens([2, NUMERIC, NUMERIC, 4], 3)
    table = torch.tensor([[1.0, 0.5, -2.0, 4.0], [2.0, 1.5, 0.0, 0.0]])
    found = tokens(table, torch.ones(2, 4, dtype=torch.bool))
    first, last = (rows.detach() - rows.detach().mean(0) for rows in tokens.categories)
    numbers = tokens.numbers.detach()
    for row in range(2):
        expected = [first[int(table[row, 0])], table[row, 1] * numbers[0], table[row, 2] * numbers[1]]
        expected.append(last[int(table[row, 3])])
        torch.testing.assert_close(found[row].detach(), torch.stack(expected))


def test_an_unknown_value_is_the_mean():
    """Of a number 0, its mean; of a category the mean of its embeddings: the token does not tell that it is unknown."""
    tokens = ColumnTokens([2, NUMERIC], 3)
    every = tokens(torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), torch.ones(3, 2, dtype=torch.bool))
    unknown = tokens(torch.full((1, 2), float("nan")), torch.zeros(1, 2, dtype=torch.bool))
    torch.testing.assert_close(unknown[0, 0], every[:, 0].mean(0), rtol=0, atol=1e-7)
    assert torch.equal(unknown[0, 1], every[0, 1])


def test_what_is_no_code_is_another_category():
    tokens = ColumnTokens([3], 4)
    known = torch.ones(4, 1, dtype=torch.bool)
    found = tokens(torch.tensor([[0.0], [4.0], [1e9], [-1.0]]), known)
    assert torch.equal(found, found[:1].expand(4, -1, -1))
    assert not torch.equal(found[:1], tokens(torch.tensor([[3.0]]), known[:1]))


def test_numbers_alone_and_categories_alone():
    for columns in ([NUMERIC], [2, 5]):
        mask = torch.ones(3, len(columns), dtype=torch.bool)
        assert ColumnTokens(columns, 4)(torch.ones(3, len(columns)), mask).shape == (3, len(columns), 4)


def test_attention_multiplies_by_its_weights():
    torch.manual_seed(0)
    attention = MaskedAttention(3, 5, 8).double().requires_grad_(False)
    x, keys = torch.randn(2, 4, 3).double(), torch.randn(2, 6, 5).double()
    mask = torch.rand(2, 4, 6) < 0.5
    mask[..., 0] = True
    query, (key, value) = attention.query(x), attention.key_value(keys).chunk(2, -1)
    expected, weights = torch.zeros(2, 4, 8).double(), torch.zeros(2, 4, 6).double()
    for b in range(2):
        for q in range(4):
            for head in range(4):
                part = slice(2 * head, 2 * head + 2)
                scores = torch.tensor([float(query[b, q, part] @ key[b, k, part]) / 2**0.5 for k in range(6)]).double()
                there = mask[b, q]
                share = torch.where(there, (scores - scores[there].max()).exp(), 0.0)
                share = share / share.sum()
                expected[b, q, part] = share @ value[b, :, part]
                weights[b, q] += share / 4
    torch.testing.assert_close(attention(x, keys, mask), expected)
    torch.testing.assert_close(attention.weights(x, keys, mask), weights)


def test_a_place_means_the_same_in_every_grid():
    """The centre of an odd grid, and the same relative place of grids of other sizes, in images and volumes."""
    torch.manual_seed(0)
    images, volumes = PlaceTokens(4, 8, 1, 2), PlaceTokens(4, 8, 1, 3)
    assert torch.allclose(images._position((3, 5))[7], images._position((1, 1))[0])
    assert torch.allclose(volumes._position((3, 3, 3))[13], volumes._position((1, 1, 1))[0])
    wide = images._position((2, 6)).unflatten(0, (2, 6))
    assert torch.allclose(wide[1, 1], images._position((2, 2)).unflatten(0, (2, 2))[1, 0])  # −1/2 of either axis
    for tokens, grid in ((images, (7, 7)), (volumes, (4, 4, 4))):
        positions = tokens._position(grid).detach()
        apart = torch.cdist(positions, positions) + torch.eye(len(positions)) * 9
        assert apart.min() > 0.05, "two places look alike"
