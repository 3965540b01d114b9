"""The verbs on a store: what they print, their exit codes, what they leave behind."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from reclora.pipelines.live import KNOWN_UNTIL
from reclora.pipelines.operate import verbs
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import SettingsError
from reclora.store import AdapterStore, StoreError, UnknownSegment
from tests.small_runs import reclora, small_settings, write_toml
from tests.small_stores import adapters, contents, pack_of


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    found = AdapterStore(tmp_path / "work" / "store")
    found.publish(adapters({"de": 1, "fr": 1}), reason="first", author="ann")
    metrics = {"de": {"ndcg": 0.25}}
    found.publish(adapters({"de": 2}), reason="second", run="r2", metrics=metrics)
    found.publish(adapters({"fr": 3}), reason="try", canary=0.25)
    return found


def ran(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(verbs, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def printed(*words: object, code: int = 0) -> Any:
    return json.loads(ran(*words, "--json", code=code).stdout)


def test_promote_and_rollback(store: AdapterStore) -> None:
    about = printed("promote", store.root, "--reason", "better", "--author", "bob")
    assert (about["number"], about["author"], about["reason"]) == (4, "bob", "better")
    assert contents(store) == {"de": 2, "fr": 3}
    words = ("rollback", store.root, "--reason", "clicks fell", "--to", 1, "--segment", "de")
    line, *changed = ran(*words).stdout.splitlines()
    assert line.startswith("       5  ")
    assert line.endswith("2 segments  clicks fell (de as in release 1)")
    assert changed[0].startswith("changed    de  user_table=rows")
    assert [row.split() for row in changed[1:]] == [
        ["before", "after"],
        ["ndcg", "0.2500", "unknown"],
    ]
    assert contents(store) == {"de": 1, "fr": 3}
    about = printed("rollback", store.root, "--reason", "all")
    assert (about["parent"], about["segments"]) == (5, 2)
    assert contents(store) == {"de": 2, "fr": 3}
    assert about["author"] == printed("history", store.root)[1]["author"] != ""


def test_without_to_each_segment_is_as_before_its_last_change(store: AdapterStore) -> None:
    store.publish(adapters({"it": 4}), reason="fourth")
    done = ran("rollback", store.root, "--reason", "x", "--segment", "de", "--segment", "it").stdout
    assert contents(store) == {"de": 1, "fr": 1}
    line, *changed = done.splitlines()
    assert line.endswith("x (de as in release 1; it as in release 3)")
    assert [row.split()[:2] for row in changed if row[0] != " "] == [
        ["changed", "de"],
        ["removed", "it"],
    ]
    ran("rollback", store.root, "--reason", "no", "--segment", "de", "--segment", "it")
    assert contents(store) == {"de": 2, "fr": 1, "it": 4}
    assert ran("history", store.root).stdout.splitlines()[0].endswith("no (de, it as in release 4)")
    done = ran("rollback", store.root, "--reason", "x", "--segment", "fr", code=1)
    assert "has segment 'fr' as every earlier one has it; name release 0 (--to 0)" in str(
        done.exception
    )


def test_back_to_the_base(store: AdapterStore) -> None:
    line = ran("rollback", store.root, "--reason", "x", "--to", 0, "--segment", "fr").stdout
    assert "1 segment  1 candidate for 0.25 of users  x (fr on the base)\n" in line
    assert contents(store) == {"de": 2}
    assert (
        "  0 segments  x (all on the base)\n"
        in ran("rollback", store.root, "--reason", "x", "--to", 0).stdout
    )
    current = store.current()
    assert current is not None and current.canary is None and contents(store) == {}
    done = ran("rollback", store.root, "--reason", "x", "--to", 0, code=1)
    assert "release 0 is what is live already: name another --to" in str(done.exception)


def test_what_many_segments_change_is_cut_short(store: AdapterStore) -> None:
    store.publish(adapters({f"s{n:02}": 5 for n in range(25)}), reason="many")
    ran("rollback", store.root, "--reason", "x", *(f"--segment=s{n:02}" for n in range(5)))
    line = ran("history", store.root).stdout.splitlines()[0]
    assert line.endswith("x (s00, s01, s02 and 2 more as in release 3)")
    lines = ran("rollback", store.root, "--reason", "x", "--to", 3).stdout.splitlines()
    assert lines[-1] != "" and len(lines) == 1 + 20 and "more" not in lines[-1]
    lines = ran("rollback", store.root, "--reason", "x", "--to", 4).stdout.splitlines()
    assert lines[-1] == f"and 5 segments more: reclora diff {store.root} 6 7"
    assert len(lines) == 1 + 20 + 1


def test_nothing_to_promote_names_the_setting(store: AdapterStore) -> None:
    store.promote(reason="better")
    done = ran("promote", store.root, "--reason", "x", code=1)
    assert isinstance(done.exception, StoreError)
    assert "no candidate to promote; a retrain with gate.canary" in str(done.exception)


def test_a_reason_is_asked_for(store: AdapterStore) -> None:
    for verb in ("promote", "rollback"):
        assert "--reason" in ran(verb, store.root, code=2).output
    assert store.releases() == [1, 2, 3]


def test_who_runs_it_may_have_no_name(store: AdapterStore) -> None:
    script = (
        "import sys, os\n"
        "for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'): os.environ.pop(name, None)\n"
        "from reclora.pipelines.operate import _user\n"
        "os.setuid(54321)\n"
        "print(_user())"
    )
    if os.getuid():
        pytest.skip("needs root, to become somebody without a name")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "54321\n", done.stderr


def test_history(store: AdapterStore) -> None:
    lines = ran("history", store.root).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert lines[0].endswith("2 segments  1 candidate for 0.25 of users  try")
    assert lines[1].endswith("2 segments  run r2  second") and "  ann  2 segments" in lines[2]
    about = printed("history", store.root)
    assert [release["number"] for release in about] == [3, 2, 1]
    for line, release in zip(lines, about, strict=True):
        moment = datetime.fromisoformat(release["time"])
        assert f"  {moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC  " in line
    assert (about[0]["share"], about[0]["candidates"], about[1]["run"]) == (0.25, 1, "r2")
    for at, live in (("2001-01-01", []), ("2999-01-01T09:30+02:00", [3, 2, 1])):
        assert [release["number"] for release in printed("history", store.root, "--at", at)] == live
    assert (
        "nothing was live at 2001-01-01" in ran("history", store.root, "--at", "2001-01-01").stdout
    )
    assert "2026-07-01" in ran("history", store.root, "--at", "yesterday", code=2).output


def test_diff(store: AdapterStore) -> None:
    first, heads, row, second, last = ran("diff", store.root, 1, 3).stdout.splitlines()
    assert first.startswith("changed    de  user_table=rows")
    assert (heads, row) == ("          before   after", "    ndcg  unknown  0.2500")
    assert second.startswith("candidate  fr  nothing -> user_table=rows")
    assert last == "2 segments differ between release 1 and 3"
    last = ran("diff", store.root, 1, 2).stdout.splitlines()[-1]
    assert last == "1 segment differs between release 1 and 2"
    about = printed("diff", store.root)
    assert (about["before"], about["after"]) == (2, 3)
    assert [(row["segment"], row["change"]) for row in about["segments"]] == [("fr", "candidate")]
    (row,) = printed("diff", store.root, 1, 2)["segments"]
    assert (row["ndcg before"], row["ndcg after"]) == (None, 0.25)
    alone = AdapterStore(store.root / "alone")
    alone.publish(adapters({"de": 1}), reason="x")
    assert "release 1 is the first" in ran("diff", alone.root, code=2).output


def test_a_diff_has_dates_where_the_json_has_seconds(store: AdapterStore) -> None:
    for value, moment in ((5, 1_792_811_870.25), (6, 1_792_898_270.0)):
        metrics = {"de": {KNOWN_UNTIL: moment}}
        store.publish(adapters({"de": value}), reason="x", metrics=metrics)
    (row,) = (line for line in ran("diff", store.root).stdout.splitlines() if KNOWN_UNTIL in line)
    assert row.split()[-2:] == ["2026-10-24T03:17:50Z", "2026-10-25T03:17:50Z"]
    (segment,) = printed("diff", store.root)["segments"]
    assert segment[f"{KNOWN_UNTIL} before"] == 1_792_811_870.25


def test_verify(store: AdapterStore) -> None:
    out = ran("verify", store.root).stdout
    assert out.startswith("3 releases, 0 of them without their packs (gc); 0 problems, 0 files")
    lost, left = pack_of(store, "de", 2), store.root / "packs" / "x.tmp.1"
    lost.unlink()
    left.write_bytes(b"half")
    out = ran("verify", store.root, code=1).stdout
    assert out.startswith(f"problem   {lost} is missing, release 3 needs it")
    assert f"unneeded  {left}: 4 bytes\n" in out
    about = printed("verify", store.root, code=1)
    assert len(about["problems"]) == 1 and about["unneeded"] == {str(left): 4}


def test_gc(store: AdapterStore) -> None:
    store.promote(reason="better")
    words = ("gc", store.root, "--keep", 1, "--grace-days", 0)
    gone = pack_of(store, "de", 1)
    would = ran(*words, "--dry-run").stdout.splitlines()
    assert would[0] == str(gone) and would[1].startswith("would remove 1 file of ")
    assert would[1].endswith("loaded: 1, 2, 3; kept because they are read: none")
    assert ran("gc", store.root, "--keep", 1).stdout.startswith("removed 0 files"), "all are young"
    assert gone.exists()
    about = printed(*words)
    assert about["files"] == {str(gone): about["bytes"]} and about["retired"] == [1, 2, 3]
    assert not gone.exists() and printed("verify", store.root)["retired"] == [1, 2, 3]


def test_a_runs_settings_name_its_store(store: AdapterStore, tmp_path: Path) -> None:
    """And errors end with the documented codes, in a process of its own."""
    settings: RunSettings = replace(
        small_settings(tmp_path, tmp_path / "log.parquet"), folder=tmp_path / "work"
    )
    write_toml(tmp_path / "run.toml", settings)
    done = reclora("history", "run.toml", cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr
    for words, code, message in (
        (("rollback", store.root, "--reason", "x", "--to", "9"), 1, "has no release 9"),
        (("history", "none.toml"), 2, "none.toml: no store's folder"),
    ):
        done = reclora(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, "") and message in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    done = ran("promote", store.root, "--reason", "x", "--segment", "f", code=1)
    assert isinstance(done.exception, UnknownSegment)
    (tmp_path / "empty").mkdir()
    for verb in ("history", "diff", "verify", "gc"):
        done = ran(verb, tmp_path / "empty", code=1)
        assert isinstance(done.exception, StoreError) and "no release yet" in str(done.exception)
    assert not [*(tmp_path / "empty").iterdir()]


def test_what_people_wrote_does_not_move_the_cursor(store: AdapterStore) -> None:
    hostile = "\x1b[2J\u202egnp\r\nfoo"
    store.publish(adapters({hostile: 1}), reason=hostile, author=hostile, run=hostile)
    for words in (("history", store.root), ("diff", store.root), ("history", store.root, "--json")):
        out = ran(*words).stdout
        assert not {"\x1b", "\u202e", "\r"} & set(out) and "[2J" in out
    assert printed("history", store.root)[0]["reason"] == hostile


def test_a_history_imports_nothing_heavy(store: AdapterStore) -> None:
    script = (
        "import sys; from reclora.pipelines.operate import verbs\n"
        "verbs(['history', sys.argv[1]], standalone_mode=False)\n"
        "print({'torch', 'pandas'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_store_is_found_by_settings_whose_run_would_be_refused(store: AdapterStore) -> None:
    """Who must roll back tonight needs the folder alone; without one the defaults are asked for."""
    path = store.root.parents[1] / "run.toml"
    path.write_text(f'folder = "{store.root.parent}"\nunknown_key = 1\n')
    assert [each["number"] for each in printed("history", path)] == [3, 2, 1]
    for text, told in (("folder = 3", "folder: expected"), ("fodler = 'x'", "did you mean folder")):
        path.write_text(f"{text}\nlog.files = ['log.parquet']\n")
        with pytest.raises(SettingsError, match=told):
            CliRunner().invoke(verbs, ["history", str(path)], catch_exceptions=False)
