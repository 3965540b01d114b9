"""What ranks hand each other arrives as it was sent, and nothing that is damaged does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_worlds import MIXED, SIZES, fill, make_base, make_log

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.distributed import DistributedError
from reclora.distributed.parcels import Parcels
from reclora.evaluation import EvaluationConfig, HeldOut, RankingJudge, hold_out
from reclora.evaluation.lists import pieces_of
from reclora.interactions import IdMap, Interactions
from reclora.ranking import UserItems
from reclora.store.reading import StoreError


@pytest.fixture
def base() -> BaseModel:
    return make_base()


@pytest.fixture
def parcels(tmp_path: Path) -> Parcels:
    return Parcels(tmp_path / "sent")


@pytest.mark.parametrize("weighted", [False, True])
def test_the_rows_of_a_log(base: BaseModel, parcels: Parcels, weighted: bool) -> None:
    log = make_log(base, seed=3, weighted=weighted)
    for part in (log, log.part([3, 1]), log.part([2])):
        found = parcels.log(parcels.put_log(part), base)
        assert found.segment_names == part.segment_names and found.users is base.users
        for name in ("offsets", "user_rows", "item_rows", "timestamps", "weights"):
            own, its = getattr(part, name), getattr(found, name)
            assert (own is None) == (its is None)
            if own is not None:
                np.testing.assert_array_equal(own, its, strict=True)


def held_out_of(base: BaseModel, candidates: str) -> HeldOut:
    log, seen = make_log(base, seed=1), make_log(base, seed=2)
    given = None
    if candidates == "given":
        shared, own = torch.arange(30) < 20, torch.arange(30) % 2 == 0
        given = {name: own if name == "日本" else shared for name in SIZES}
    config = EvaluationConfig((5, 10), ("recall", "ndcg"), candidates=candidates)  # type: ignore[arg-type]
    return hold_out(log, seen, config, given)


@pytest.mark.parametrize("candidates", ["catalogue", "segment", "given"])
def test_held_out_users(base: BaseModel, parcels: Parcels, candidates: str) -> None:
    whole = held_out_of(base, candidates)
    in_pieces = replace(whole, segments=tuple(p for s in whole.segments for p in s.pieces(7)))
    nobody = replace(whole, segments=())
    for held_out in (whole, in_pieces, nobody):
        found = parcels.users(parcels.put_users(held_out), base)
        assert found.config == held_out.config and found.num_items == held_out.num_items
        assert len(found.segments) == len(held_out.segments)
        for own, its in zip(held_out.segments, found.segments, strict=True):
            assert (own.name, own.users_without_relevant) == (its.name, its.users_without_relevant)
            assert torch.equal(own.user_rows_U, its.user_rows_U)
            assert own.user_ids.equals(its.user_ids)
            assert all(map(torch.equal, sets(own.relevant), sets(its.relevant)))
            assert all(map(torch.equal, sets(own.seen), sets(its.seen)))
            assert (own.candidates_N is None) == (its.candidates_N is None)
            if own.candidates_N is not None and its.candidates_N is not None:
                assert torch.equal(own.candidates_N, its.candidates_N)
    # A judge says the same of them.
    bank = fill(AdapterBank.for_log(base, make_log(base), AdapterConfig(rank=2)))
    said = [RankingJudge(h)(bank, np.arange(len(SIZES))) for h in (whole, found)]
    assert np.isnan(said[1]).all()
    arrived = parcels.users(parcels.put_users(whole), base)
    np.testing.assert_array_equal(RankingJudge(arrived)(bank, np.arange(len(SIZES))), said[0])
    assert pieces_of(arrived)


def sets(items: UserItems) -> Iterator[torch.Tensor]:
    yield from (items.offsets_U1, items.item_rows)


def adapters_of(base: BaseModel) -> list[Adapter]:
    """Of several configs, on two parents and on none, one name more than once, and one that has
    nothing of its own.
    """
    parents = [
        fill(AdapterBank.for_log(base, make_log(base, {"pooled": 60}, seed=s), AdapterConfig()), s)
        for s in (4, 5)
    ]
    log = make_log(base)
    banks = [
        fill(AdapterBank.for_log(base, log, [MIXED[n] for n in log.segment_names], parent=below))
        for below in (None, parents[0].adapter("pooled"), parents[1].adapter("pooled"))
    ]
    served = Adapter("served", (), base.fingerprint, {}, banks[1].parent_adapter)
    return [*(a for bank in banks for a in bank.adapters()), served, *banks[0].adapters()]


def test_adapters_and_what_they_stand_on(base: BaseModel, parcels: Parcels) -> None:
    sent = adapters_of(base)
    found = [parcels.adapter(address) for address in parcels.put_adapters(sent)]
    assert len(found) == len(sent)
    for own, its in zip(sent, found, strict=True):
        while True:
            assert (own.segment, own.config) == (its.segment, its.config)
            assert own.base_fingerprint == its.base_fingerprint
            assert own.tensors.keys() == its.tensors.keys()
            assert all(torch.equal(own.tensors[name], its.tensors[name]) for name in own.tensors)
            if own.parent is None or its.parent is None:
                assert own.parent is its.parent
                break
            own, its = own.parent, its.parent  # noqa: PLW2901
    assert parcels.adapter(parcels.put_adapters(sent)[0]).parent is None
    below = [a.parent for a in found if a.parent is not None]
    assert len({id(parent) for parent in below}) == 2, "what stands on one parent has one"
    (address,) = parcels.put_adapters([sent[5].parent] if sent[5].parent else [])
    assert parcels.parent(address) is below[0], "also where the parent itself is asked for"


def test_one_adapter_for_many_is_written_and_read_once(
    base: BaseModel, parcels: Parcels, tmp_path: Path
) -> None:
    bank = fill(AdapterBank.for_log(base, make_log(base), AdapterConfig(rank=2)))
    (one, other, *_) = bank.adapters()
    addresses = parcels.put_adapters([one, other, one, one])
    assert addresses[0] == addresses[2] == addresses[3] != addresses[1]
    assert len(list((tmp_path / "sent").iterdir())) == 1
    numbers = [parcels.adapter(addresses[at]).tensors["user_table.rows.a"] for at in (0, 2)]
    assert numbers[0].data_ptr() == numbers[1].data_ptr()


def test_what_is_there_is_not_written_again(
    base: BaseModel, parcels: Parcels, tmp_path: Path
) -> None:
    def put() -> tuple[object, ...]:
        held_out = held_out_of(base, "segment")
        return (
            parcels.put_log(make_log(base)),
            parcels.put_users(held_out),
            parcels.put_adapters(adapters_of(base)),
        )

    first = put()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "sent").iterdir()}
    assert put() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sent").iterdir()} == written


@pytest.mark.parametrize("strings", [False, True])
def test_identifiers_behind_those_of_the_base(parcels: Parcels, strings: bool) -> None:
    name = (lambda n: f"ü{n}") if strings else (lambda n: n)
    users, items = IdMap([name(n) for n in (5, 1)]), IdMap([name(n) for n in (2, 9, 4)])
    base = BaseModel.of(users, items, torch.ones(2, 4), torch.ones(3, 4))
    # In the order in which they came, which is no ascending one.
    more = IdMap([name(n) for n in (5, 1, 7, 0, 3)])
    grown = base.grown(more, items)
    found = parcels.ids(parcels.put_ids(grown), base)
    assert found == (more, items)


def test_what_is_damaged_or_gone_is_refused(
    base: BaseModel, parcels: Parcels, tmp_path: Path
) -> None:
    name = parcels.put_log(make_log(base))
    path = tmp_path / "sent" / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DistributedError, match=f"{name}.*is not there, or is damaged: all ranks"):
        parcels.log(name, base)
    path.unlink()
    with pytest.raises(DistributedError, match=f"{name}.*is not there, or is damaged: all ranks"):
        parcels.log(name, base)
    adapters = adapters_of(base)
    (address, *_) = parcels.put_adapters(adapters)
    pack = tmp_path / "sent" / f"{address[0]}.safetensors"
    sound = pack.read_bytes()
    for damaged in (sound[:-9], sound[:-1] + bytes([sound[-1] ^ 1])):
        pack.write_bytes(damaged)
        with pytest.raises(StoreError, match=str(pack)):
            parcels.adapter(address)


def test_what_is_damaged_is_sent_anew_by_who_begins_again(
    base: BaseModel, parcels: Parcels, tmp_path: Path
) -> None:
    """The first rank, once it was started again."""
    log, adapters = make_log(base), adapters_of(base)
    name, addresses = parcels.put_log(log), parcels.put_adapters(adapters)
    for path in (tmp_path / "sent").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    again = Parcels(tmp_path / "sent")
    assert (again.put_log(log), again.put_adapters(adapters)) == (name, addresses)
    assert len(again.log(name, base)) == len(log)
    for address, adapter in zip(addresses, adapters, strict=True):
        found = again.adapter(address)
        assert all(torch.equal(found.tensors[n], adapter.tensors[n]) for n in found.tensors)


def test_a_log_without_rows_and_attributes(base: BaseModel, parcels: Parcels) -> None:
    """What training does not look at stays behind."""
    log = make_log(base)
    sliced = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=log.segment_names,
        segments=log.segment_rows,
        user_rows=log.user_rows,
        item_rows=log.item_rows,
        timestamps=log.timestamps,
        attributes={"device": ["phone"] * len(log)},
    )
    assert parcels.put_log(sliced) == parcels.put_log(log)
    nothing = log.select(np.zeros(len(log), bool))
    assert len(parcels.log(parcels.put_log(nothing), base)) == 0
