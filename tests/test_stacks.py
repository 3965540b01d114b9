"""Stacks: what goes in comes out, as views; what does not stack is refused."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, AdapterError
from reclora.stacks import AdapterStack

BASE = "ba5e" * 16
CONFIG = AdapterConfig(rank=2)
PARENT = Adapter("pooled", CONFIG, BASE, {"x": torch.ones(1)})


def adapter(segment: str, tensors: Mapping[str, Tensor], parent: Adapter | None = None) -> Adapter:
    return Adapter(segment, CONFIG, BASE, tensors, parent)


def made(segment: str, rows: int, seed: int, parent: Adapter | None = None) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(rows, 2, generator=generator)
    tensors = {"rows": torch.arange(rows), "a": factor, "b": torch.full((2, 3), float(seed))}
    return adapter(segment, tensors, parent)


def assert_same(found: Sequence[Adapter], wanted: Sequence[Adapter]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one.segment, one.config) == (other.segment, other.config)
        assert one.base_fingerprint == other.base_fingerprint and one.parent is other.parent
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in other.tensors.items():
            assert one.tensors[name].dtype == tensor.dtype
            assert torch.equal(one.tensors[name], tensor)


adapters = st.lists(
    st.tuples(st.text(), st.integers(0, 3)), min_size=1, max_size=6, unique_by=lambda pair: pair[0]
).map(lambda pairs: [made(name, rows, seed, PARENT) for seed, (name, rows) in enumerate(pairs)])


@settings(max_examples=50, deadline=None)
@given(adapters, st.data())
def test_what_is_stacked_is_there_one_by_one_all_at_once_and_in_part(
    wanted: list[Adapter], data: st.DataObject
) -> None:
    stack = AdapterStack.of(wanted)
    assert_same(list(stack), wanted)
    assert_same([stack[code] for code in range(len(stack))], wanted)
    assert_same([stack[-1]], wanted[-1:])
    codes = data.draw(st.lists(st.sampled_from(range(len(wanted))), unique=True))
    assert_same(stack.take(codes), [wanted[code] for code in codes])
    first, step = data.draw(st.integers(-7, 7)), data.draw(st.sampled_from([-2, -1, 1, 2]))
    assert_same(stack[first::step], wanted[first::step])


def test_an_adapter_of_a_stack_is_a_part_of_its_memory() -> None:
    stack = AdapterStack.of([made("a", 2, 1), made("b", 3, 2)])
    stack[1].tensors["a"].fill_(7)
    assert stack.tensors["a"][2:].eq(7).all() and not stack.tensors["a"][:2].eq(7).any()
    list(stack)[0].tensors["b"].fill_(8)
    assert stack.tensors["b"][:2].eq(8).all() and stack.tensors["b"][2:].eq(2).all()


def test_a_stack_and_its_parts_are_copies() -> None:
    wanted = made("a", 2, 1)
    stack = AdapterStack.of([wanted, made("b", 3, 2)])
    for copy in (stack, stack.take([0]), stack[:1]):
        copy[0].tensors["a"].fill_(7)
    assert_same([wanted], [made("a", 2, 1)])


def test_adapters_without_tensors_stack() -> None:
    stack = AdapterStack.of([adapter("a", {}), adapter("b", {})])
    assert [one.segment for one in stack] == ["a", "b"] and stack[1].tensors == {}
    assert len(stack.take([])) == 0


def test_numbers_that_train_are_stacked_without_their_history() -> None:
    weight = torch.ones(1, 2, requires_grad=True)
    assert not AdapterStack.of([adapter("a", {"x": weight * 2})]).tensors["x"].requires_grad


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        AdapterStack.of([made("a", 2, 1)])[1]


def test_a_stack_shows_its_size() -> None:
    stack = AdapterStack.of([made("a", 2, 1), made("b", 3, 2)])
    assert repr(stack) == "AdapterStack(2 segments, 22 numbers, of base ba5eba5eba5e)"


FIRST = adapter("a", {"x": torch.ones(1, 2)})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (adapter("a", FIRST.tensors), "'a' comes twice"),
        (Adapter("b", CONFIG, "f0f0", FIRST.tensors), "'b' belongs to base f0f0, .*'a' to ba5e"),
        (Adapter("b", AdapterConfig(rank=3), BASE, FIRST.tensors), "'b' has .*rank=3.*rank=2"),
        (adapter("b", FIRST.tensors, PARENT), "'b' has parent Adapter.'pooled'.*'a' has None"),
        (adapter("b", {"x": torch.ones(1, 3)}), r"'b': x is torch.float32 \(1, 3\), .*'any', 2\)"),
        (adapter("b", {"x": torch.ones(1, 2).double()}), "'b': x is torch.float64"),
        (adapter("b", {"x": torch.tensor(1.0)}), r"'b': x is torch.float32 \(\), .* 1 dimension"),
        (adapter("b", {}), r"'b' and segment 'a' .*\['x'\] in one"),
        (adapter("b", {**FIRST.tensors, "y": torch.ones(1)}), r"\['y'\] in one of them"),
    ],
)
def test_adapters_that_do_not_stack_are_refused(other: Adapter, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        AdapterStack.of([FIRST, other])


def test_nothing_is_no_stack() -> None:
    with pytest.raises(AdapterError, match="at least one adapter"):
        AdapterStack.of([])


def test_a_number_alone_is_no_stack() -> None:
    with pytest.raises(AdapterError, match=r"'a': x is torch.float32 \(\), .* 1 dimension"):
        AdapterStack.of([adapter("a", {"x": torch.tensor(1.0)})])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (lambda: {"x": torch.tensor([0, 2])}, r"int64 \(2,\).* 2 segments need int64 \(3,\)"),
        (lambda: {"x": torch.tensor([0.0, 1, 3])}, "torch.float32"),
        (lambda: {"x": torch.tensor([0, 1, 2])}, "do not rise from 0 to 3"),
        (lambda: {"x": torch.tensor([1, 2, 3])}, "do not rise from 0 to 3"),
        (lambda: {"x": torch.tensor([0, 4, 3])}, "do not rise from 0 to 3"),
        (lambda: {}, r"\['x'\] lacks its tensor or its offsets"),
    ],
)
def test_offsets_that_do_not_divide_their_tensor_are_refused(
    offsets: Callable[[], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        AdapterStack(("a", "b"), CONFIG, BASE, {"x": torch.ones(3)}, offsets())
