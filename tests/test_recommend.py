"""Batches of lists: against plain loops, killed and resumed, damaged, refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import torch
from typer.testing import CliRunner

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.evaluation import ForeignError
from reclora.files import read_parquet, write_parquet
from reclora.interactions import IdMap, Interactions
from reclora.pipelines.candidate_items import CandidateItems
from reclora.pipelines.prepare import prepare
from reclora.pipelines.pretrain import pretrain
from reclora.pipelines.recommend import Recommended, recommend
from reclora.pipelines.recommend_cli import verbs
from reclora.pipelines.run import LogSettings, RunSettings, WindowFiles
from reclora.pipelines.served import Served, Work, in_order
from reclora.pipelines.space import check_space
from reclora.pipelines.wanted import History, Wanted, wanted_of
from reclora.ranking.parts import MANIFEST, PARTS, REQUEST, PartsError, part_name
from reclora.scoring import ALL
from reclora.splits import WINDOWS
from reclora.store import AdapterStore, Release, StoreError
from tests.small_runs import (
    HOSTILE,
    files_below,
    finished,
    random_log,
    small_settings,
    write_toml,
)
from tests.small_worlds import KINDS, SIZES, configs_of, fill, make_base, make_log

K = 7
PER_PART = 40
Run = Callable[..., Recommended]


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    return finished(tmp_path_factory)[0]


@pytest.fixture
def run(settings: RunSettings, tmp_path: Path) -> Run:
    def recommended(**changes: Any) -> Recommended:
        given: dict[str, Any] = {"k": K, "into": tmp_path / "lists", "lists_per_part": PER_PART}
        return recommend(**({"settings": settings} | given | changes))

    return recommended


def lists_of(made: Recommended) -> pd.DataFrame:
    parts = [read_parquet(made.folder / part_name(n)) for n in range(made.parts)]
    lists: pd.DataFrame = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
    return lists


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.name): content for path, (_, _, content) in files_below(folder).items()}


def slow_lists(settings: RunSettings, pairs: list[tuple[Any, str | None]]) -> pd.DataFrame:
    """The lists of (user, segment) pairs, one user and one adapter at a time."""
    base, store = BaseModel.load(settings.base_folder), AdapterStore(settings.store_folder)
    release = store.current()
    assert release is not None
    log = Interactions.read(settings.log_folder).pooled()
    taken = set(zip(log.users.ids_of(log.user_rows).to_pylist(), log.item_rows, strict=True))
    items = log.items.ids.to_pylist()
    seen: dict[Any, set[Any]] = {}
    for user, item in taken:
        seen.setdefault(user, set()).add(items[item])
    names = base.items.ids.to_pylist()
    rows = []
    for user, segment in pairs:
        model, tried = base, is_tried(release, user, segment)
        if segment is not None and (tried or segment in release.segments):
            adapter = store.load(segment, base_fingerprint=base.fingerprint, candidates=tried)
            model = AdapterBank.of(base, [adapter]).merged(segment)
        user_row = torch.from_numpy(base.users.rows_of([user]))
        scores = model.scorer().scores(user_row)[0].tolist()
        open_items = [i for i in range(len(names)) if names[i] not in seen.get(user, set())]
        best = sorted(open_items, key=lambda i: (-scores[i], i))[:K]
        rows += [(user, segment, at + 1, names[i], scores[i], tried) for at, i in enumerate(best)]
    columns = ["user_id", "segment", "rank", "item_id", "score", "candidate"]
    return pd.DataFrame(rows, columns=columns)


def is_tried(release: Release, user: Any, segment: str | None) -> bool:
    """Whether a candidate serves a user in a segment."""
    canary = release.canary
    if canary is None or segment not in canary.segments:
        return False
    digest = hashlib.sha256(f"canary:{user}".encode()).hexdigest()
    return int(digest[:16], 16) / 2**64 < canary.share


def pairs_of_log(settings: RunSettings) -> set[tuple[Any, str | None]]:
    log = Interactions.read(settings.log_folder)
    users = log.users.ids_of(log.user_rows).to_pylist()
    segments = [log.segment_names[code] for code in log.segment_rows]
    return set(zip(users, segments, strict=True))


def check_lists(settings: RunSettings, found: pd.DataFrame, pairs: list[Any]) -> None:
    expected = slow_lists(settings, pairs)
    for column in ("user_id", "rank", "item_id", "candidate"):
        assert found[column].tolist() == expected[column].tolist()
    assert found["segment"].fillna("").tolist() == expected["segment"].fillna("").tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4, atol=1e-5)


def all_pairs(settings: RunSettings) -> list[tuple[Any, str | None]]:
    """(user, segment) of every list, in the order of the lists."""
    row = {u: n for n, u in enumerate(BaseModel.load(settings.base_folder).users.ids.to_pylist())}
    pairs = {pair for pair in pairs_of_log(settings) if pair[0] in row}
    alone = sorted(set(row) - {user for user, _ in pairs}, key=row.__getitem__)
    ordered = sorted(pairs, key=lambda pair: (str(pair[1]), row[pair[0]]))
    return [*ordered, *((user, None) for user in alone)]


def test_all_users_get_what_a_plain_loop_gives(settings: RunSettings, run: Run) -> None:
    made = run()
    base, wanted, found = BaseModel.load(settings.base_folder), all_pairs(settings), lists_of(made)
    alone = [user for user, segment in wanted if segment is None]
    check_lists(settings, found, wanted)
    assert found["score"].dtype == np.float32 and set(found["release"]) == {1}
    assert made.lists == len(wanted) and made.parts == -(-made.lists // PER_PART) > 2
    manifest = json.loads((made.folder / MANIFEST).read_text())
    assert manifest["lists"] == made.lists and manifest["rows"] == len(found)
    assert manifest["lists_without_segment"] == len(alone)
    assert [part["name"] for part in manifest["parts"]] == [part_name(n) for n in range(made.parts)]
    assert manifest["request"]["base"] == base.fingerprint


@pytest.fixture
def with_canary(settings: RunSettings, tmp_path: Path) -> RunSettings:
    """Two segments have a candidate for some users; in one of them nothing else is live."""
    shutil.copytree(settings.folder, tmp_path / "with canary")
    mine = replace(settings, folder=tmp_path / "with canary")
    base, store = BaseModel.load(mine.base_folder), AdapterStore(mine.store_folder)
    log = Interactions.read(mine.log_folder).onto(base.users, base.items)[0]
    adapters = fill(AdapterBank.for_log(base, log, KINDS["rows"])).adapters()
    store.publish([], reason="too few", remove=[adapters[2].segment])
    store.publish(adapters[1:3], reason="try", canary=0.3)
    return mine


def test_a_canarys_users_get_the_lists_of_candidates(
    with_canary: RunSettings, run: Run, tmp_path: Path
) -> None:
    made = run(settings=with_canary)
    found, wanted = lists_of(made), all_pairs(with_canary)
    check_lists(with_canary, found, wanted)
    release = AdapterStore(with_canary.store_folder).current()
    assert release is not None and release.canary is not None
    tried = sum(is_tried(release, user, segment) for user, segment in wanted)
    assert 0 < tried == made.lists_of_candidates
    manifest = json.loads((made.folder / MANIFEST).read_text())
    assert manifest["lists_of_candidates"] == tried
    assert set(found["segment"][found["candidate"]]) == set(release.canary.segments)
    assert not set(release.canary.segments) <= set(release.segments)
    # A segment that only a candidate knows is a segment.
    name = next(iter(set(release.canary.segments) - set(release.segments)))
    pairs = [pair for pair in wanted if pair[1] == name][:9]
    pd.DataFrame(pairs, columns=["user_id", "segment"]).to_parquet(tmp_path / "users.parquet")
    some = run(settings=with_canary, users=tmp_path / "users.parquet", into=tmp_path / "some")
    check_lists(with_canary, lists_of(some), pairs)


def test_parts_with_a_canary_are_made_anew_in_the_same_bytes(
    with_canary: RunSettings, run: Run
) -> None:
    made = run(settings=with_canary)
    before = bytes_of(made.folder)
    for number in range(0, made.parts, 2):
        (made.folder / part_name(number)).unlink()
    repaired = run(settings=with_canary)
    assert repaired.reused_parts == made.parts // 2
    assert repaired.lists_of_candidates == made.lists_of_candidates
    after = bytes_of(made.folder)
    assert {n: after[n] for n in before if n != PARTS} == {
        n: before[n] for n in before if n != PARTS
    }
    AdapterStore(with_canary.store_folder).promote(reason="it sings")
    with pytest.raises(PartsError, match="lists of release 3, this would be release 4: name"):
        run(settings=with_canary)


def test_every_scorer_that_is_opened_is_counted(with_canary: RunSettings) -> None:
    """The estimate counts what the parts then open."""
    store = AdapterStore(with_canary.store_folder)
    release, base = store.current(), BaseModel.load(with_canary.base_folder)
    assert release is not None
    served = Served(base, store, release, candidates=True)
    history = History.read(with_canary, served.base)
    wanted = wanted_of(None, history, served.base, release, "fail")
    items = CandidateItems.catalogue(len(base.items))
    work = Work(served, wanted, history.seen(len(base.users)), items, K, PER_PART)
    opened, expected = [0] * work.num_parts, [0] * work.num_parts
    for part in range(work.num_parts):
        chunks = list(work.chunks(part))
        opened[part] = sum(chunk.opening_cpu_s is not None for chunk in chunks)
        kinds = in_order(chunks).select(["segment", "candidate"]).to_pandas()
        expected[part] = len(kinds.fillna("").drop_duplicates())
        assert expected[part] == len(list(work.by_scorer(part)))
    assert opened == expected and sum(opened) > work.num_parts


@pytest.mark.parametrize("with_segments", [False, True])
def test_candidate_items_are_those_of_the_file(with_segments: bool, tmp_path: Path) -> None:
    """And without segments, those of all; what the base does not know is left out."""
    rng = np.random.default_rng(0)
    items, names = IdMap([f"i{n}" for n in range(40)]), ["b", "a", "日本"]
    rows = [(f"i{rng.integers(60)}", names[rng.integers(3)]) for _ in range(50)]
    frame = pd.DataFrame(rows, columns=["item_id", "segment"])
    path = tmp_path / "items.parquet"
    (frame if with_segments else frame[["item_id"]]).to_parquet(path)
    found = CandidateItems.read(path, items, names)
    for name in (*names, None):
        own = {i for i, segment in rows if name in (None, segment) or not with_segments}
        mask_N = found.mask(name)
        assert mask_N is not None
        assert mask_N.tolist() == [item in own for item in items.ids.to_pylist()]
    if with_segments:
        with pytest.raises(ForeignError, match="segment 'fr' has no candidate that the base knows"):
            CandidateItems.read(path, items, ["a", "fr"])
    with pytest.raises(ForeignError, match="has no candidate that the base knows"):
        CandidateItems.read(path, IdMap(["other"]), names)


def test_a_list_of_users_with_their_segments(
    settings: RunSettings, run: Run, tmp_path: Path
) -> None:
    """Segments come from the list; what was seen comes from the log, of any segment."""
    users = BaseModel.load(settings.base_folder).users.ids.to_pylist()
    names = sorted(Interactions.read(settings.log_folder).segment_names)
    pairs = [(user, name) for name in (names[1], names[0]) for user in users[5:20]]
    frame = pd.DataFrame([*pairs, pairs[3]], columns=["user_id", "segment"])
    frame.to_parquet(tmp_path / "users.parquet")
    made = run(users=tmp_path / "users.parquet")
    assert made.lists == 30
    check_lists(settings, lists_of(made), [*pairs[15:], *pairs[:15]])


def test_a_list_of_users_without_segments(settings: RunSettings, run: Run, tmp_path: Path) -> None:
    users = BaseModel.load(settings.base_folder).users.ids.to_pylist()[::9]
    pd.DataFrame({"user_id": users}).to_parquet(tmp_path / "users.parquet")
    found = lists_of(run(users=tmp_path / "users.parquet", into=tmp_path / "some"))
    everybody = lists_of(run())
    mine = everybody[everybody["user_id"].isin(users)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, mine, check_exact=False, rtol=1e-4)


def test_who_is_unknown_fails_or_is_dropped(
    settings: RunSettings, run: Run, tmp_path: Path
) -> None:
    user = BaseModel.load(settings.base_folder).users.ids.to_pylist()[0]
    stranger = "nobody" if isinstance(user, str) else 10**12
    name = Interactions.read(settings.log_folder).segment_names[0]
    path = tmp_path / "users.parquet"
    rows = [(user, name), (stranger, name), (user, name + "?")]
    pd.DataFrame(rows, columns=["user_id", "segment"]).to_parquet(path)
    with pytest.raises(ForeignError, match=r"column user_id: 1 of 3 rows .*with --unknown drop"):
        run(users=path)
    made = run(users=path, unknown="drop")
    assert made.strangers == 0, "of those who are named it says so itself"
    manifest = json.loads((made.folder / MANIFEST).read_text())
    assert made.lists == 1
    assert manifest["dropped"] == {"unknown users": 1, "unknown segments": 1}
    pd.DataFrame(rows[::2], columns=["user_id", "segment"]).to_parquet(path)
    with pytest.raises(ForeignError, match=f"column segment.*near names: '{name}'"):
        run(users=path, into=tmp_path / "other")
    pd.DataFrame(rows[1:2], columns=["user_id", "segment"]).to_parquet(path)
    with pytest.raises(ForeignError, match="knows none of its users"):
        run(users=path, unknown="drop", into=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("unknown", ["fail", "drop"])
def test_identifiers_of_another_type_are_told(
    settings: RunSettings, run: Run, tmp_path: Path, unknown: str
) -> None:
    """And what is no identifier is told as that, whatever the base holds."""
    kinds = {False: ("int64", "large_string"), True: ("large_string", "int64")}
    base = BaseModel.load(settings.base_folder)
    path = tmp_path / "ids.parquet"
    evaluation = replace(settings.evaluation, candidates="given")
    given = replace(settings, evaluation=evaluation, candidates=path)
    changes: dict[str, dict[str, Any]] = {
        "user_id": {"users": path, "unknown": unknown},
        "item_id": {"settings": given},
    }
    for column, ids in (("user_id", base.users), ("item_id", base.items)):
        is_integer = isinstance(ids.ids[0].as_py(), int)
        pd.DataFrame({column: ["1", "2"] if is_integer else [1, 2]}).to_parquet(path)
        theirs, ours = kinds[is_integer]
        sentence = f"{column} is {theirs} in {path} and {ours} in the base model; write both as "
        with pytest.raises(ForeignError, match=re.escape(sentence)):
            run(**changes[column])
        pd.DataFrame({column: [0.5]}).to_parquet(path)
        with pytest.raises(ForeignError, match=f"column {column}: ids must be .* got double"):
            run(**changes[column])


def test_given_candidates_alone_are_recommended(
    settings: RunSettings, run: Run, tmp_path: Path
) -> None:
    items = BaseModel.load(settings.base_folder).items.ids.to_pylist()
    pd.DataFrame({"item_id": items[:40]}).to_parquet(tmp_path / "candidates.parquet")
    evaluation = replace(settings.evaluation, candidates="given")
    given = replace(settings, evaluation=evaluation, candidates=tmp_path / "candidates.parquet")
    assert set(lists_of(run(settings=given))["item_id"]) <= set(items[:40])
    own = replace(settings, evaluation=replace(settings.evaluation, candidates="segment"))
    found = lists_of(run(settings=own, into=tmp_path / "own"))
    log = Interactions.read(settings.log_folder)
    for segment, part in found.dropna(subset="segment").groupby("segment"):
        mine = log.only(str(segment))
        assert set(part["item_id"]) <= set(mine.items.ids_of(np.unique(mine.item_rows)).to_pylist())
    pd.DataFrame({"item_id": items[:3], "segment": "x"}).to_parquet(given.candidates or tmp_path)
    with pytest.raises(ForeignError, match="has no candidate that the base knows"):
        run(settings=given, into=tmp_path / "none")


def test_rows_of_all_windows_are_seen(settings: RunSettings, tmp_path: Path) -> None:
    """A log that is cut already has the users, segments and items of the same log whole."""
    base = BaseModel.load(settings.base_folder)
    (whole_log,) = settings.log.files
    rows = read_parquet(whole_log).sort_by("timestamp")
    windows = {}
    for at, window in enumerate(WINDOWS):
        windows[window] = (tmp_path / f"{window}.parquet",)
        size = len(rows) // 4 + 1
        write_parquet(windows[window][0], rows.slice(at * size, size))
    cut = replace(settings, folder=tmp_path, log=LogSettings(windows=WindowFiles(**windows)))
    prepare(cut)
    histories = [History.read(each, base) for each in (settings, cut)]
    one, other = (
        {
            (h.segments[code], user, item)
            for code, user, item in zip(h.codes, h.user_rows, h.item_rows, strict=True)
        }
        for h in histories
    )
    assert one == other and histories[0].unknown_users == histories[1].unknown_users
    seen = [history.seen(len(base.users)) for history in histories]
    assert torch.equal(seen[0].item_rows, seen[1].item_rows)
    assert torch.equal(seen[0].offsets_U1, seen[1].offsets_U1)


def test_scores_without_an_order_name_their_segment(
    settings: RunSettings, run: Run, tmp_path: Path
) -> None:
    """Products of finite numbers that are none: nothing is written of them."""
    base = BaseModel.load(settings.base_folder)
    users, items = (torch.full(t.weight_ND.shape, 1e30) for t in (base.user_table, base.item_table))
    broken = BaseModel.of(base.users, base.items, users, items)
    broken.save(tmp_path / "broken")
    mine = replace(
        settings, folder=tmp_path / "work", base=replace(settings.base, saved=tmp_path / "broken")
    )
    name = Interactions.read(settings.log_folder).segment_names[0]
    bank = AdapterBank(broken, [name], [torch.arange(3)], [torch.arange(3)], KINDS["bias"])
    AdapterStore(mine.store_folder).publish(bank.adapters(), reason="broken")
    with pytest.raises(ValueError, match=f"segment '{name}': scores must be finite"):
        run(settings=mine)
    assert not (tmp_path / "lists").exists()


def test_a_dry_run_writes_nothing(
    settings: RunSettings, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(dry_run=True)
    assert not made.folder.exists() and made.estimate is not None
    assert made.estimate.lists == made.lists > 0
    assert made.estimate.lists_per_cpu_s > 0 and made.estimate.minutes > 0
    assert f"estimate: {made.lists:,} lists at" in capsys.readouterr().err
    real = run()
    written = sum(path.stat().st_size for path in real.folder.glob("part-*"))
    assert written / 2 < made.estimate.bytes < written * 4


def test_what_is_whole_is_kept_and_what_is_damaged_is_made_anew(run: Run) -> None:
    made = run()
    before = files_below(made.folder)
    again = run()
    assert again.reused_parts == again.parts and again.estimate is None
    parts = [made.folder / part_name(n) for n in range(made.parts)]
    assert all(files_below(made.folder)[part] == before[part] for part in parts)
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 2] ^= 1
    parts[1].write_bytes(content)
    parts[2].unlink()
    with (made.folder / PARTS).open("a") as facts:
        facts.write('{"number": 3, "sha')
    (made.folder / "part-00000.parquet.tmp.0123").write_bytes(b"half")
    repaired = run()
    assert repaired.reused_parts == made.parts - 2
    assert {p: f[2] for p, f in files_below(made.folder).items()} == {
        p: f[2] for p, f in before.items()
    }


CHILD = """
import sys
from pathlib import Path
from reclora.pipelines.pretrain import pretrain
from reclora.pipelines.recommend import recommend
from reclora.pipelines.prepare import prepare
from reclora.pipelines.run import LogSettings, RunSettings, WindowFiles
from reclora.pipelines.settings import load
settings, into = map(Path, sys.argv[1:])
recommend(load(settings, RunSettings, []), k=7, into=into, lists_per_part=1)
"""


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    settings: RunSettings, run: Run, tmp_path: Path
) -> None:
    toml = write_toml(tmp_path / "run.toml", settings)
    into = tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, str(toml), str(into)]
    for part in (5, 40):
        with subprocess.Popen(
            command, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not (into / part_name(part)).exists():
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
        assert not (into / MANIFEST).exists()
    whole = run(lists_per_part=1)
    resumed = run(lists_per_part=1, into=into)
    assert 40 <= resumed.reused_parts < resumed.parts
    assert bytes_of(into) == bytes_of(whole.folder)


def test_another_request_is_refused(run: Run, tmp_path: Path) -> None:
    made = run()
    before = files_below(made.folder)
    with pytest.raises(PartsError, match=f"holds the lists of k {K}, this would be k 3: name"):
        run(k=3)
    (made.folder / MANIFEST).unlink()
    (made.folder / REQUEST).unlink()
    with pytest.raises(PartsError, match="holds other files, such as _parts.jsonl, and no _"):
        run()
    kept = files_below(made.folder)
    assert kept.items() <= before.items() and len(kept) == len(before) - 2
    with pytest.raises(StoreError, match="has no release 99"):
        run(release=99)
    with pytest.raises(ValueError, match="k must be at most the number of items, .*, got 100,000"):
        run(k=100_000)
    with pytest.raises(ValueError, match="k and lists_per_part must be at least 1, got 0"):
        run(k=0)


def test_lists_of_another_release_are_named_before_all_that_follows_from_it(
    settings: RunSettings, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(settings.folder, tmp_path / "work")
    mine = replace(settings, folder=tmp_path / "work")
    run(settings=mine)
    store = AdapterStore(mine.store_folder)
    removed = next(iter(store.release(1).segments))
    second = store.publish([], reason="less", remove=[removed])
    lists = tmp_path / "lists"
    said = f"{lists} holds the lists of release 1, this would be release {second.number}: name "
    with pytest.raises(PartsError) as told:
        run(settings=mine, k=3)
    assert str(told.value) == f"{said}another folder, or remove it"
    request = json.loads((lists / REQUEST).read_text()) | {"canary": "0.5 of another"}
    (lists / REQUEST).write_text(json.dumps(request))
    with pytest.raises(PartsError, match=r"of canary 0.5 of another, this would be canary none: "):
        run(settings=mine, release=1)


def test_readers_of_parquet_folders_read_the_lists(run: Run) -> None:
    made = run()
    assert made.parts > 1
    expected = lists_of(made)
    pd.testing.assert_frame_equal(pd.read_parquet(made.folder), expected)
    dataset = pyarrow.dataset.dataset(made.folder)
    assert len(dataset.files) == made.parts
    pd.testing.assert_frame_equal(dataset.to_table().to_pandas(), expected)


def test_two_runs_do_not_write_into_one_folder(run: Run, tmp_path: Path) -> None:
    into = tmp_path / "lists"
    into.mkdir()
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), 2); print(1); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(into)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(PartsError, match="another process writes into"):
            run()
        holder.communicate(b"\n")
    assert run().reused_parts == 0


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match=r"about [1,0]+ bytes are needed.* free: '.*/not/yet'"):
        check_space(tmp_path / "not" / "yet", 10**18)


def test_a_full_disk_is_found_before_a_part_is_written(run: Run, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with pytest.raises(OSError, match=r"about .* bytes are needed here, and .* free"):
            run(into=small / "lists")
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_names_of_segments_are_never_paths(tmp_path: Path) -> None:
    """And users that only adapters know have lists too."""
    log = random_log(
        tmp_path / "log.parquet", dict.fromkeys(HOSTILE, (0, 1)) | {HOSTILE[1]: (0.75, 1)}
    )
    mine = small_settings(tmp_path, log, unknown="grow")
    with pytest.raises(StoreError, match="has no release yet"):
        recommend(mine, k=3, into=tmp_path / "lists")
    base = pretrain(mine, prepare(mine).inputs)
    rows = Interactions.read(mine.log_folder)
    grown = base.grown(base.users.extended(rows.users.ids), base.items.extended(rows.items.ids))
    known = rows.onto(grown.users, grown.items)[0]
    adapters = AdapterBank.for_log(grown, known, KINDS["map"]).adapters()
    AdapterStore(mine.store_folder).publish(adapters, reason="hostile")
    before = set(tmp_path.rglob("*"))
    made = recommend(mine, k=3, into=tmp_path / "lists")
    lists = lists_of(made)
    assert set(lists["segment"].dropna()) == set(HOSTILE)
    assert set(lists["user_id"]) - set(base.users.ids.to_pylist())
    new = set(tmp_path.rglob("*")) - before
    assert {path.name for path in new} == {"lists", part_name(0), REQUEST, PARTS, MANIFEST}


def test_users_whom_nobody_knows_are_counted(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {"old": (0, 1), "new": (0.75, 1)})
    mine = small_settings(tmp_path, log)
    base = pretrain(mine, prepare(mine).inputs)
    rows = Interactions.read(mine.log_folder)
    known = rows.onto(base.users, base.items)[0]
    adapters = AdapterBank.for_log(base, known, KINDS["map"]).adapters()
    AdapterStore(mine.store_folder).publish(adapters, reason="of those who are known")
    made = recommend(mine, k=3, into=tmp_path / "lists")
    assert made.strangers == len(rows.users) - len(base.users) > 0
    assert set(lists_of(made)["user_id"]) == set(base.users.ids.to_pylist())


def test_every_segment_is_served_by_its_own_adapter_of_whatever_night(tmp_path: Path) -> None:
    """Two parents, several packs, segments that a parent serves, identifiers that one night knew
    and the other did not.
    """
    base, store = make_base(), AdapterStore(tmp_path / "store")
    names = list(SIZES)
    for night, segments in enumerate((names, names[1:3])):
        news = [f"new {night}"], [10_000 + night]
        larger = base.grown(base.users.extended(news[1]), base.items.extended(news[0]))
        log = make_log(larger, {name: SIZES[name] for name in segments}, seed=night)
        pooled = log.pooled()
        above = fill(AdapterBank.for_log(larger, pooled, KINDS["map"])).adapters()[0]
        bank = AdapterBank.for_log(larger, log, configs_of("mixed", segments), parent=above)
        adapters = fill(bank, night + 2).adapters()
        own = adapters[:-2] if night == 0 else adapters
        served = [a.segment for a in adapters if a not in own] if night == 0 else []
        store.publish(own, reason="night", serves_parent=served, parent=above)
    release = store.current()
    assert release is not None and len(release.packs) > 2
    everything = Served(base, store, release)
    users = torch.arange(len(base.users))
    for name in names:
        adapter = store.load(name, base_fingerprint=base.fingerprint)
        alone = AdapterBank.of(everything.base, [adapter]).scorer(name)
        found = everything.scorer(name).scores(users, ALL)
        torch.testing.assert_close(found, alone.scores(users))
        assert found.shape[1] == len(base.items) + 2
        assert everything.has_adapter(name)
    nobody, elsewhere = (everything.scorer(s).scores(users, ALL) for s in (None, "elsewhere"))
    assert torch.equal(nobody, elsewhere)


def test_candidates_are_served_beside_what_is_current(tmp_path: Path) -> None:
    """Over one base with the identifiers of both; who asks for what is current reads no more."""
    base, store = make_base(), AdapterStore(tmp_path / "store")
    log = make_log(base, SIZES)
    store.publish(fill(AdapterBank.for_log(base, log, KINDS["rows"])).adapters(), reason="night")
    larger = base.grown(base.users, base.items.extended(["new"]))
    log = make_log(larger, SIZES, seed=1)
    bank = fill(AdapterBank.for_log(larger, log, KINDS["map"]), 5)
    release = store.publish(bank.adapters()[:2], reason="try", canary=0.5)
    served = Served(base, store, release, candidates=True)
    users, tried = torch.arange(len(base.users)), list(SIZES)[:2]
    for name in SIZES:
        for candidate in (False, True):
            adapter = store.load(
                name, base_fingerprint=base.fingerprint, candidates=candidate and name in tried
            )
            alone = AdapterBank.of(served.base, [adapter]).scorer(name)
            found = served.scorer(name, candidate).scores(users, ALL)
            torch.testing.assert_close(found, alone.scores(users))
    assert served.base.items == larger.items
    current = Served(base, store, release)
    assert current.base.items == base.items
    assert torch.equal(
        current.scorer(tried[0]).scores(users, ALL), current.scorer(tried[0], True).scores(users)
    )


def test_the_verb(settings: RunSettings, tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "run.toml", settings)
    words = [str(toml), "-k", "4", "--into", str(tmp_path / "out")]
    dry = CliRunner().invoke(verbs, [*words, "--dry-run"])
    assert dry.exit_code == 0 and "nothing is written" in dry.stdout
    assert not (tmp_path / "out").exists()
    assert " lists of release 1 in 1 part, 0 of them made before;" in dry.stdout
    done = CliRunner().invoke(verbs, [*words, "--json"])
    said = json.loads(done.stdout)
    assert said["release"] == 1 and said["parts"] == 1 and said["folder"] == str(tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).exists()


def test_runs_of_lists() -> None:
    codes, rows = np.array([0, 0, 2, 3, 3]), np.arange(5)
    wanted = Wanted(("a", "b", "c"), codes, rows, {})
    runs = [(s, places.tolist()) for s, places in wanted.runs(slice(1, 5))]
    assert runs == [("a", [1]), ("c", [2]), (None, [3, 4])]
