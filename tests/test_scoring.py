"""Scores of a whole catalogue equal plain loops, however many users go at once."""

import pytest
import torch

import reclora.scoring
from tests import reference
from tests.small_worlds import make_base


@pytest.mark.parametrize("hidden", [(), (5,), (4, 3)])
@pytest.mark.parametrize("pair_bytes", [1, 64 << 20])
def test_scores_equal_plain_loops(
    hidden: tuple[int, ...], pair_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclora.scoring, "PAIR_BYTES", pair_bytes)
    base = make_base(num_users=7, num_items=5, dim=3, hidden=hidden)
    users = torch.tensor([6, 0, 0, 3, 5])
    scorer = base.scorer()
    found = scorer.scores(users)
    assert scorer.num_items == 5
    assert found.shape == (5, 5) and not found.requires_grad
    layers = [(w[0].tolist(), b[0].tolist()) for w, b in base.tower.layers()] if base.tower else []
    for i, user in enumerate(users.tolist()):
        for item in range(5):
            expected = reference.score(
                base.user_table.weight_ND[user].tolist(),
                base.item_table.weight_ND[item].tolist(),
                base.item_bias.weight_ND[item].item(),
                layers,
            )
            assert found[i, item].item() == pytest.approx(expected, abs=1e-5)


def test_no_users_have_no_scores() -> None:
    assert make_base().scorer().scores(torch.empty(0, dtype=torch.int64)).shape == (0, 30)


@pytest.mark.parametrize("hidden", [(), (5,), (4, 3)])
def test_pairs_and_slices_have_the_scores_of_the_whole(hidden: tuple[int, ...]) -> None:
    scorer = make_base(num_users=7, num_items=9, dim=3, hidden=hidden).scorer()
    users = torch.tensor([6, 0, 3])
    whole = scorer.scores(users)
    torch.testing.assert_close(scorer.scores(users, slice(2, 6)), whole[:, 2:6])
    item_rows = torch.tensor([[0, 8], [5, 5], [2, 1]])
    torch.testing.assert_close(scorer.pair_scores(users, item_rows), whole.gather(1, item_rows))


def test_the_retriever_leaves_the_tower_out() -> None:
    base = make_base(num_users=7, num_items=9, dim=3, hidden=(5,))
    users = torch.arange(7)
    expected = base.user_table.weight_ND @ base.item_table.weight_ND.T
    expected += base.item_bias.weight_ND.T
    torch.testing.assert_close(base.scorer().retriever().scores(users), expected)
