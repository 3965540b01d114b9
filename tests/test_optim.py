"""Row-wise Adagrad equals plain loops and FBGEMM's, and leaves other rows' bytes alone."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reclora.optim import RowwiseAdagrad
from tests import reference

HEIGHT, WIDTH = 6, 3

number = st.floats(-2, 2, width=32)
gradients = st.lists(
    st.tuples(st.integers(0, HEIGHT - 1), st.tuples(number, number, number)), max_size=8
)


def sparse(rows: list[int], values: list[tuple[float, ...]]) -> Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64),
        torch.tensor(values, dtype=torch.float32).reshape(-1, WIDTH),
        (HEIGHT, WIDTH),
        check_invariants=True,
    )


def make_table() -> nn.Parameter:
    return nn.Parameter(torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)))


@given(st.lists(gradients, min_size=1, max_size=4))
@settings(deadline=None)
def test_it_equals_plain_loops(steps: list[list[tuple[int, tuple[float, float, float]]]]) -> None:
    table = make_table()
    expected, sums = table.tolist(), [0.0] * HEIGHT
    optimizer = RowwiseAdagrad([table], lr=0.1, eps=1e-3)
    for step in steps:
        table.grad = sparse([row for row, _ in step], [values for _, values in step])
        optimizer.step()
        reference.rowwise_adagrad(expected, sums, step, 0.1, 1e-3)
    torch.testing.assert_close(table.detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(optimizer.state[table]["sum"], torch.tensor(sums))


def test_rows_without_a_gradient_keep_their_bytes_and_their_state() -> None:
    table = make_table()
    before = table.detach().clone()
    optimizer = RowwiseAdagrad([table], lr=0.1)
    table.grad = sparse([4, 1, 4], [(1.0, 2.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)])
    optimizer.step()
    untouched = [0, 1, 2, 3, 5]
    assert table.detach()[untouched].numpy().tobytes() == before[untouched].numpy().tobytes()
    assert optimizer.state[table]["sum"][untouched].tolist() == [0.0] * 5
    assert (table.detach()[4] != before[4]).all()


def test_dense_and_sparse_gradients_give_the_same_rows() -> None:
    ours, dense = make_table(), make_table()
    values = [(1.0, -2.0, 0.5)] * HEIGHT
    ours.grad, dense.grad = sparse(list(range(HEIGHT)), values), torch.tensor(values)
    for table in (ours, dense):
        RowwiseAdagrad([table], lr=0.1).step()
    torch.testing.assert_close(ours, dense)


def test_groups_have_their_own_rates() -> None:
    fast, slow, still = make_table(), make_table(), make_table()
    before = make_table().detach()
    groups = [{"params": [fast, still], "lr": 0.2}, {"params": [slow]}]
    optimizer = RowwiseAdagrad(groups, lr=0.1)
    for table in (fast, slow):
        table.grad = torch.ones(HEIGHT, WIDTH)
    optimizer.step()
    torch.testing.assert_close(fast.detach(), before - 0.2)
    torch.testing.assert_close(slow.detach(), before - 0.1)
    assert torch.equal(still, before)


def test_equals_fbgemm() -> None:
    tbe = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    width = 4  # theirs takes multiples of 4
    peer = tbe.SplitTableBatchedEmbeddingBagsCodegen(
        [(HEIGHT, width, common.EmbeddingLocation.HOST, tbe.ComputeDevice.CPU)],
        optimizer=tbe.OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
    )
    generator = torch.Generator().manual_seed(3)
    table = nn.Parameter(torch.randn(HEIGHT, width, generator=generator))
    peer.split_embedding_weights()[0].copy_(table.detach())
    optimizer = RowwiseAdagrad([table], lr=0.1)
    for _ in range(5):
        rows = torch.randint(HEIGHT - 1, (4,), generator=generator)
        weight = torch.randn(4, width, generator=generator)
        optimizer.zero_grad()
        found = nn.functional.embedding(rows, table, sparse=True)
        theirs = peer(rows, torch.arange(5))
        for outputs in (found, theirs):
            torch.autograd.backward((outputs * weight).sum())
        optimizer.step()
    torch.testing.assert_close(table.detach(), peer.split_embedding_weights()[0])


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_positive(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be a positive number"):
        RowwiseAdagrad([make_table()], lr=lr)


def test_a_parameter_must_be_a_table() -> None:
    with pytest.raises(ValueError, match=r"2-D parameters, got shape \(3,\)"):
        RowwiseAdagrad([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_steps_shrink_as_the_gradients_add_up() -> None:
    table = make_table()
    optimizer = RowwiseAdagrad([table], lr=0.1)
    places = [table[0, 0].item()]
    for _ in range(4):
        table.grad = sparse([0], [(1.0, 1.0, 1.0)])
        optimizer.step()
        places.append(table[0, 0].item())
    steps = [before - after for before, after in pairwise(places)]
    assert steps == pytest.approx([0.1 / n**0.5 for n in (1, 2, 3, 4)], rel=1e-5)
