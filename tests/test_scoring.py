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
