"""Orders: a night that asks for all there is comes out on many ranks as in one process, and what
cannot go on ends.

Run as a program this file is the nights: of one process, then of groups of ranks.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_ranks import start_ranks
from small_runs import finished, live, planted_log, same_tables, small_settings
from small_worlds import fill, make_base, make_log

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.distributed import DistributedError
from reclora.distributed.recommending import Shares
from reclora.evaluation import EvaluationConfig, HeldOut, KeptLists, Lists, hold_out
from reclora.evaluation import recommend as alone
from reclora.gate import GateConfig
from reclora.pipelines import orders
from reclora.pipelines.orders import Crew, check_ranks, help_first, recommend
from reclora.pipelines.ranks import is_first, together
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import RunSettings, Search
from reclora.pipelines.settings import SettingsError
from reclora.popularity import popularity
from reclora.splits import SplitConfig
from reclora.training import TrainingConfig

ONE, RANKS = "one", "ranks"
"""The folders of the nights."""


def night(folder: Path, number: int) -> RunSettings:
    """The first or the second night of a store."""
    settings = small_settings(
        folder,
        folder / "log.parquet",
        split=SplitConfig("global_time", pretrain=0.5, train=0.3, validation=0.08, test=0.12),
        training=TrainingConfig(epochs=3, batch_rows=32, num_negatives=32),
        search=Search((0.05,), (0.2,), (0.01,)),
        seeds=(1,),
        chunk_rows=400,
        unknown="grow",
        compared=(),
        deadline_minutes=2.0,
    )
    settings = replace(settings, base=replace(settings.base, saved=folder / "base"))
    if number == 1:
        return settings
    return replace(
        settings,
        name="second",
        start="current",
        parent="auto",
        history="all",
        half_life=20.0,
        ages=(7.0,),
        gate=GateConfig(canary=0.5),
        evaluation=EvaluationConfig((10,), ("ndcg",), candidates="given"),
        candidates=folder / "candidates.parquet",
    )


# The program.


def be_rank(number: int, world: int, folder: Path) -> None:
    """A night."""
    settings = night(folder / RANKS, 2)
    if is_first():
        retrain(settings)
    else:
        help_first(settings)


def be_ranker(number: int, world: int, folder: Path) -> None:
    """Of two ranks, who rank so many users that each has some."""
    settings = night(folder, 1)
    if not is_first():
        torch.set_num_threads(2)
        help_first(settings)
        assert torch.get_num_threads() == settings.threads == 1
        return
    with together(2.0):
        crew = Crew(settings)
        base = crew.open()
        held_out, bank = many_users(base)
        for model, scorer_of in (("bank", bank.scorer), ("base", lambda _: base.scorer())):
            kept = KeptLists(folder / "lists", model)
            said = {"model": model, "workers": 1, "crew": crew, "kept": kept}
            lists = recommend(held_out, scorer_of, **said)[""]  # type: ignore[arg-type]
            save_file(as_tensors(lists), folder / f"{model}.safetensors")
            # What is kept is not made again: of what is lost alone a rank is asked.
            files = sorted((folder / "lists").glob(f"{model}-*"))
            made = {path: path.stat().st_mtime_ns for path in files}
            files[1].unlink()
            again = recommend(held_out, scorer_of, **said)[""]  # type: ignore[arg-type]
            assert all(torch.equal(t, as_tensors(again)[n]) for n, t in as_tensors(lists).items())
            changed = [path for path in files if path.stat().st_mtime_ns != made[path]]
            assert changed == [files[1]]
        crew.leave()


def be_stranger(number: int, world: int, folder: Path) -> None:
    """Of two ranks, one of which has another torch."""
    settings = night(folder, 1)
    try:
        if is_first():
            with together(2.0):
                Crew(settings).open()
        else:
            orders.versions = lambda: {"torch": "0.1"}
            help_first(settings)
    except DistributedError as error:
        (folder / f"said-{number}").write_text(str(error))


def many_users(base: BaseModel) -> tuple[HeldOut, AdapterBank]:
    """Of a segment with more users than are ranked at once, and of two more."""
    sizes = {"a": 40_000, "b": 9_000, "c": 900}
    log, seen = make_log(base, sizes, seed=1), make_log(base, sizes, seed=2)
    held_out = hold_out(log, seen, EvaluationConfig((5,), ("ndcg",)))
    own = make_log(base, dict.fromkeys(sizes, 500), seed=3)
    return held_out, fill(AdapterBank.for_log(base, own, AdapterConfig(rank=2)))


def as_tensors(lists: Lists) -> dict[str, torch.Tensor]:
    return {name: its.item_rows_UK for name, its in lists.segments.items()}


def as_ranks(world: int, folder: Path, be_rank: Callable[[int, int, Path], None]) -> None:
    """Fork a group of ranks, which torchrun seems to have started."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}

    def started(number: int, world: int, folder: Path) -> None:
        own = {"TORCHELASTIC_RUN_ID": "nights", "WORLD_SIZE": str(world), "RANK": str(number)}
        os.environ.update(own | address)
        be_rank(number, world, folder)

    start_ranks((world,), started, folder)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    as_ranks(2, folder / "many", be_ranker)
    as_ranks(2, folder / "many", be_stranger)
    retrain(night(folder / ONE, 1))
    shutil.copytree(folder / ONE, folder / RANKS)
    as_ranks(3, folder, be_rank)
    retrain(night(folder / ONE, 2))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nights")
    log = planted_log(folder / ONE / "log.parquet")
    shutil.copytree(finished(tmp_path_factory)[0].base_folder, folder / ONE / "base")
    rows = pq.read_table(log).group_by(["segment", "item_id"]).aggregate([])
    names = enumerate(rows["segment"].to_pylist())
    # Of one segment a third is no candidate.
    is_one = pa.array([place % 3 > 0 or name != "market 0" for place, name in names])
    pq.write_table(rows.filter(is_one), folder / ONE / "candidates.parquet")
    large().save(folder / "many" / "base")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_second_night_is_that_of_one_process(nights: Path) -> None:
    """With what is live, candidates, ages and a canary: the same to the byte."""
    ours, theirs = night(nights / RANKS, 2), night(nights / ONE, 2)
    assert live(ours.store_folder) == live(theirs.store_folder)
    (own,), (its,) = (list(each.runs.glob("second-*/")) for each in (ours, theirs))
    same_tables(own, its, ("decisions", "results", "comparison", "slices", "drift"))
    assert not list(own.glob("*/sent")), "what was sent is removed"


def large() -> BaseModel:
    return make_base(num_users=30_000, num_items=60, hidden=())


def test_each_rank_ranks_its_own_users(nights: Path) -> None:
    base = large()
    held_out, bank = many_users(base)
    assert all(Shares.of(held_out, 2).of_ranks), "both have some"
    for model, scorer_of in (("bank", bank.scorer), ("base", lambda _: base.scorer())):
        expected = as_tensors(alone(held_out, scorer_of, model=model)[""])
        found = load_file(nights / "many" / f"{model}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(expected[name], found[name]) for name in found)


def test_ranks_of_other_versions_are_refused(nights: Path) -> None:
    for number in range(2):
        said = (nights / "many" / f"said-{number}").read_text()
        assert said.startswith("the ranks have different versions: this one has {'")
        assert ("{'torch': '0.1'}, commit" in said) == (number == 1)


def test_a_rank_that_helps_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "it", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"call reclora.pipelines.orders.help_first"):
        retrain(night(tmp_path, 1))


def test_what_is_whole_here_is_ranked_here(tmp_path: Path) -> None:
    """Popularity has no table on the ranks: they are not asked, and there need be none."""
    base = make_base()
    log, seen = make_log(base, seed=1), make_log(base, seed=2)
    held_out = hold_out(log, seen, EvaluationConfig((5,), ("ndcg",)))
    said = {"model": "popularity", "kept": KeptLists(tmp_path, "popularity")}
    crew = object()
    found = recommend(held_out, popularity(seen), workers=1, crew=crew, **said)  # type: ignore[arg-type]
    expected = alone(held_out, popularity(seen), model="popularity")
    for name, lists in expected[""].segments.items():
        assert torch.equal(found[""].segments[name].item_rows_UK, lists.item_rows_UK)


def test_what_needs_the_whole_base_is_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        night(tmp_path, 1),
        labelled=(tmp_path / "labels.parquet",),
        evaluation=EvaluationConfig((10,), ("ndcg",), retrieve=50),
    )
    check_ranks(settings)
    for name, value in {"TORCHELASTIC_RUN_ID": "it", "WORLD_SIZE": "3", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    check_ranks(night(tmp_path, 2))
    message = "labelled and evaluation.retrieve: that needs the whole base .* here are 3 ranks"
    with pytest.raises(SettingsError, match=message):
        help_first(settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
