"""The tower equals plain loops, pair by pair and all with all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.tower import Tower, all_scores, paired_scores
from tests import reference
from tests.small_worlds import make_tower


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 5), max_size=2),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_scores_equal_plain_loops(dim: int, hidden: list[int], g: int, b: int, c: int) -> None:
    towers = [make_tower(dim, tuple(hidden), seed) for seed in range(g)]
    layers = [
        (torch.cat([weight for weight, _ in same]), torch.cat([bias for _, bias in same]))
        for same in zip(*(t.layers() for t in towers), strict=True)
    ]
    generator = torch.Generator().manual_seed(dim)
    u, v = torch.randn(g, b, dim, generator=generator), torch.randn(g, c, dim, generator=generator)
    found = all_scores(layers, u, v)
    assert found.shape == (g, b, c)
    for s, one in enumerate(towers):
        plain = [
            (w.tolist(), bias.tolist()) for w, bias in zip(one.weights, one.biases, strict=True)
        ]
        for i in range(b):
            for j in range(c):
                expected = reference.tower(plain, u[s, i].tolist(), v[s, j].tolist())
                assert found[s, i, j].item() == pytest.approx(expected, abs=1e-5)
    pairs = min(b, c)
    paired = paired_scores(layers, u[:, :pairs], v[:, :pairs])
    torch.testing.assert_close(paired, found.diagonal(dim1=1, dim2=2), atol=1e-5, rtol=1e-4)


def test_a_fresh_tower_adds_nothing_but_can_learn() -> None:
    fresh = Tower.random(4, [6, 5], torch.Generator().manual_seed(0))
    u = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    assert not paired_scores(fresh.layers(), u, u).any()
    assert [tuple(w.shape) for w in fresh.weights] == [(6, 12), (5, 6), (1, 5)]
    assert all(w.any() for w in fresh.weights[:-1])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 6), (1, 5)], "layer 0 must map 6 numbers to 5"),
        ([(4, 6), (2, 4)], "layer 1 must map 4 numbers to 1"),
        ([(4, 7), (1, 4)], r"3 x D numbers, got 7"),
    ],
)
def test_layers_that_do_not_fit_are_refused(shapes: list[tuple[int, int]], message: str) -> None:
    weights = tuple(torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        Tower(weights, tuple(torch.zeros(len(w)) for w in weights))


def test_a_bias_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 0"):
        Tower((torch.zeros(1, 6),), (torch.zeros(2),))
