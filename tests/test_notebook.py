"""What a notebook shows of our objects: names are text, and long tables are cut."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from test_report import HOSTILE, SUBJECT, example

from reclora.bank import AdapterBank
from reclora.configs import AdapterConfig
from reclora.evaluation import EvaluationConfig, hold_out
from reclora.notebook import ROWS, as_html
from reclora.ranking import rank
from reclora.store import AdapterStore
from reclora.training import HeldOutLoss, Training, TrainingConfig, train
from tests.small_stores import adapters
from tests.small_worlds import make_base, make_log

SIZES = {"<b>de</b>": 40, "fr": 9}


class Named:
    def __repr__(self) -> str:
        return "<Named & shown>"


def test_names_are_text_and_long_tables_are_cut() -> None:
    table = {"segment": ["<script>", *map(str, range(29))], "rows": [None, *range(29)]}
    text = as_html(Named(), table)
    assert "&lt;Named &amp; shown&gt;" in text and "<script>" not in text
    assert "&lt;script&gt;" in text and "–" in text
    assert text.count("<tr") == 1 + ROWS and f"{ROWS} of 30 rows" in text
    assert "rows</p>" not in as_html(Named(), {"segment": ["a"]})


def test_a_log_a_bank_a_training_and_a_store_show_their_segments(tmp_path: Path) -> None:
    base = make_base(hidden=())
    log = make_log(base, SIZES)
    bank = AdapterBank.for_log(base, log, AdapterConfig(rank=2, tower="none"))
    training = train(bank, log, TrainingConfig(epochs=2), judge=HeldOutLoss(log, TrainingConfig()))
    store = AdapterStore(tmp_path / "store")
    store.publish(bank.adapters(), reason="<i>first</i>", author="me")
    held_out = hold_out(log, log.select(np.arange(len(log)) % 2 == 0), EvaluationConfig())
    release = store.current()
    assert release is not None
    for shown in (log, bank, training, held_out, release):
        text = shown._repr_html_()
        assert "&lt;b&gt;de&lt;/b&gt;" in text and "<b>" not in text
    assert re.search(r"<td>fr</td>\s*<td>9</td>", log._repr_html_())
    text = store._repr_html_()
    assert "&lt;i&gt;first&lt;/i&gt;" in text and re.search(r"<td>1</td>", text)
    helped = sum(epoch > 0 for epoch in training.best_epoch.values())
    assert repr(training).startswith(f"Training({helped} of 2 segments better than before, ")
    assert f"{training.steps} steps" in repr(training)


def test_what_is_held_out_what_is_ranked_and_a_release_are_a_line() -> None:
    base = make_base(hidden=())
    log = make_log(base, SIZES)
    seen = log.select(np.arange(len(log)) % 2 == 0)
    held_out = hold_out(log, seen, EvaluationConfig((10, 5), ("ndcg", "recall")))
    counts = held_out.counts()
    assert repr(held_out) == (
        f"HeldOut({counts['users'].sum()} users of 2 segments, {counts['relevant'].sum()} relevant "
        f"items of {len(base.items)}; ndcg, recall at 10, 5)"
    )
    assert counts["users"].min() > 0
    assert [repr(segment) for segment in held_out.segments] == [
        f"HeldOutSegment({row.segment!r}, {row.users} users, {row.relevant} relevant items)"
        for row in counts.itertuples()
    ]
    users = torch.arange(3)
    assert repr(rank(base.scorer(), users, 2)) == "RankedLists(3 users, k=2)"
    two = torch.zeros(len(base.items), dtype=torch.bool)
    two[:2] = True
    lists = rank(base.scorer(), users, 4, candidates_N=two)
    assert repr(lists) == "RankedLists(3 users, k=4, 3 with fewer candidates)"


def test_a_release_is_a_line_and_its_segments(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    store.publish(adapters({"de": 1, "fr": 1}), reason="first\n\x1b", author="me")
    store.publish(adapters({"de": 2}), reason="second", canary=0.1)
    first, second = store.release(1), store.release(2)
    when = f"{first.time:%Y-%m-%d %H:%M:%S} UTC"
    assert repr(first) == f"Release(1, {when} by 'me': 'first\\n\\x1b'; 2 segments)"
    assert repr(second).endswith(": 'second'; 2 segments, 1 candidates)")
    text = first._repr_html_()
    pack = first.segments["fr"].pack[:12]
    assert re.search(rf"<td>fr</td>\s*<td>own</td>\s*<td>{pack}</td>", text)


def test_a_report_shows_its_answer_and_segments() -> None:
    report = example(HOSTILE)
    assert repr(report) == (
        f"Report({SUBJECT!r} over 'frozen base' on ndcg@10: +0.0134 [0.0101, 0.0167], better)"
    )
    text = report._repr_html_()
    assert "<script" not in text and "<img" not in text
    assert text.count("<tr") == 1 + len(HOSTILE)


def test_a_quarantined_segment_says_why() -> None:
    why = "the loss is not finite in <epoch> 1"
    training = Training(pd.DataFrame(), {"a": 2, "b": 0}, 5, {"b": why})
    assert repr(training) == (
        "Training(1 of 2 segments better than before, 1 quarantined, 5 steps, 0.0 CPU-s)"
    )
    assert "the loss is not finite in &lt;epoch&gt; 1" in training._repr_html_()
