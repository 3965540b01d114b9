"""The planted world: its rows follow the stated law, its truth has the stated shape."""

import itertools
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from reclora.datasets.planted import CHUNK_ROWS, PlantedConfig, PlantedWorld, plant, write_log
from reclora.files import read_parquet
from reclora.interactions import Interactions, LogContract, prepare_log

SMALL = PlantedConfig(
    num_users=120, num_items=40, dim=4, num_base_interactions=3000, num_interactions=2000
)
# Two segments of two users each, the second unshifted.
FOUR_USERS = PlantedConfig(
    num_users=4,
    num_items=6,
    dim=3,
    num_segments=2,
    unshifted_segments=1,
    tiny_segments=0,
    num_base_interactions=40_000,
    num_interactions=40_000,
    signal=1.0,
    bias_shift=0.5,
    num_choices=6,
)


def law(world: PlantedWorld, user: int, after_cut: bool) -> list[float]:
    """The probability of each item for one user, by plain loops over the docstring's formulas."""
    config = world.config
    factors, directions, bias_shift = world.segment_shift(
        world.segment_names[world.user_segment[user]]
    )
    weights = []
    for item in range(config.num_items):
        score = float(world.item_bias[item])
        for d in range(config.dim):
            value = float(world.item_vectors[item, d])
            if after_cut:
                for r in range(config.rank):
                    value += float(factors[item, r]) * float(directions[r, d])
            score += float(world.user_vectors[user, d]) * value
        if after_cut:
            score += float(bias_shift[item])
        weights.append(math.exp(score))
    if config.num_choices >= config.num_items:
        return [weight / sum(weights) for weight in weights]
    chances = [0.0] * config.num_items
    slates = list(itertools.product(range(config.num_items), repeat=config.num_choices))
    for slate in slates:
        total = sum(weights[item] for item in slate)
        for item in slate:
            chances[item] += weights[item] / total / len(slates)
    return chances


def counts(world: PlantedWorld, user: int, after_cut: bool) -> list[int]:
    """How often the user took each item before or after the cut."""
    cut = round(world.cut_time.timestamp() * 1e6)
    found = [0] * world.config.num_items
    for chunk in world.chunks():
        here = (chunk.user_rows == user) & ((chunk.timestamps >= cut) == after_cut)
        for item in chunk.item_rows[here]:
            found[item] += 1
    return found


def p_value(found: list[int], chances: list[float]) -> float:
    total = sum(found)
    return float(chisquare(found, [total * chance for chance in chances]).pvalue)


@pytest.mark.parametrize("num_choices", [2, 6])
def test_frequencies_follow_the_law(num_choices: int) -> None:
    world = plant(replace(FOUR_USERS, num_choices=num_choices))
    for user in range(4):
        for after_cut in (False, True):
            found = counts(world, user, after_cut)
            assert p_value(found, law(world, user, after_cut)) > 1e-3, (user, after_cut)
        unshifted = world.segment_names[world.user_segment[user]] in world.unshifted_segments
        # The law after the cut is another one, and this test would see it, if and only if shifted.
        assert (p_value(found, law(world, user, False)) < 1e-9) != unshifted


def test_users_are_drawn_uniformly() -> None:
    world = plant(FOUR_USERS)
    users = [sum(counts(world, user, False)) for user in range(4)]
    assert p_value(users, [0.25] * 4) > 1e-3


def test_same_config_same_log_and_another_seed_another() -> None:
    first, second = plant(SMALL).table(), plant(SMALL).table()
    assert first.equals(second)
    other = plant(replace(SMALL, seed=1)).table()
    assert not first["item_id"].equals(other["item_id"])


def test_a_chunk_does_not_depend_on_what_comes_after_it() -> None:
    config = replace(SMALL, tiny_segments=0, num_choices=2, num_base_interactions=CHUNK_ROWS + 7)
    long, short = plant(config), plant(replace(config, num_base_interactions=CHUNK_ROWS))
    long_chunks, short_chunks = list(long.chunks()), list(short.chunks())
    assert [len(chunk.item_rows) for chunk in long_chunks] == [CHUNK_ROWS, 7, 2000]
    assert [len(chunk.item_rows) for chunk in short_chunks] == [CHUNK_ROWS, 2000]
    for one, other in ((long_chunks[0], short_chunks[0]), (long_chunks[2], short_chunks[1])):
        assert np.array_equal(one.user_rows, other.user_rows)
        assert np.array_equal(one.item_rows, other.item_rows)
    assert not np.array_equal(long_chunks[0].item_rows[:7], long_chunks[1].item_rows)


def test_the_table_has_the_columns_of_the_contract() -> None:
    world = plant(SMALL)
    table = world.table()
    assert table.schema.equals(
        pa.schema(
            {
                "user_id": pa.string(),
                "item_id": pa.string(),
                "timestamp": pa.timestamp("us", tz="UTC"),
                "segment": pa.string(),
            }
        )
    )
    assert all(column.null_count == 0 for column in table.columns)
    assert table.num_rows == world.num_rows == 5000
    before = pc.sum(pc.less(table["timestamp"], pa.scalar(world.cut_time))).as_py()
    assert before == SMALL.num_base_interactions
    assert np.all(np.diff(table["timestamp"].cast(pa.int64()).to_numpy()) > 0)


def test_the_table_names_the_rows_of_the_chunks() -> None:
    world = plant(SMALL)
    table = world.table()
    users = np.concatenate([chunk.user_rows for chunk in world.chunks()])
    items = np.concatenate([chunk.item_rows for chunk in world.chunks()])
    assert table["user_id"].to_pylist() == [world.user_ids[row].as_py() for row in users]
    assert table["item_id"].to_pylist() == [world.item_ids[row].as_py() for row in items]
    assert table["segment"].to_pylist() == [
        world.segment_names[world.user_segment[row]] for row in users
    ]


def test_identifiers_are_unique_and_not_in_the_order_of_rows() -> None:
    world = plant(SMALL)
    for ids, count in ((world.user_ids, 120), (world.item_ids, 40)):
        listed = ids.to_pylist()
        assert len(set(listed)) == count
        assert listed != sorted(listed)


def test_the_shift_has_its_rank_its_size_and_its_segments() -> None:
    config = replace(SMALL, num_items=2000, dim=8, rank=3, shift=0.7, signal=2.0, bias_shift=0.4)
    world = plant(config)
    size = np.sqrt((world.item_vectors**2).sum(axis=1).mean())
    assert size == pytest.approx(2.0, rel=0.05)
    for name in world.shifted_segments + world.tiny_segments:
        factors, directions, bias = world.segment_shift(name)
        shift = factors @ directions
        assert np.linalg.matrix_rank(shift, tol=1e-3) == 3
        assert np.sqrt((shift**2).sum(axis=1).mean()) == pytest.approx(0.7 * 2.0, rel=0.05)
        gram = directions @ directions.T
        assert np.allclose(gram, gram[0, 0] * np.eye(3), atol=1e-5)
        assert bias.std() == pytest.approx(0.4, rel=0.1)
    assert len(world.unshifted_segments) == 2
    for name in world.unshifted_segments:
        factors, directions, bias = world.segment_shift(name)
        assert not np.any(factors @ directions)
        assert not np.any(bias)


def test_scores_have_the_stated_spread() -> None:
    world = plant(replace(SMALL, num_users=2000, num_items=2000, signal=3.0))
    assert (world.user_vectors @ world.item_vectors.T).std() == pytest.approx(3.0, rel=0.05)


def test_segments_are_parted_into_shifted_unshifted_and_tiny() -> None:
    world = plant(SMALL)
    parts = world.shifted_segments + world.unshifted_segments + world.tiny_segments
    assert parts == world.segment_names
    assert [len(part) for part in (world.shifted_segments, world.tiny_segments)] == [5, 1]
    assert world.segment_names[:3] == ("market 0", "日本", "us.mobile")


def test_many_segments_have_distinct_names() -> None:
    names = plant(replace(SMALL, num_users=400, num_segments=300)).segment_names
    assert len(set(names)) == 300


def test_tiny_segments_have_their_rows_in_each_period() -> None:
    world = plant(replace(SMALL, tiny_segments=2, tiny_rows=11))
    table = world.table()
    after = pc.greater_equal(table["timestamp"], pa.scalar(world.cut_time))
    for period in (after, pc.invert(after)):
        rows = table.filter(period)["segment"].to_pylist()
        assert [rows.count(name) for name in world.tiny_segments] == [11, 11]


@pytest.mark.parametrize(("exponent", "low", "high"), [(0.0, 0.05, 0.2), (1.0, 0.4, 0.9)])
def test_popularity_is_as_skewed_as_asked(exponent: float, low: float, high: float) -> None:
    world = plant(replace(SMALL, signal=0.5, popularity_exponent=exponent))
    counts = np.sort(world.table()["item_id"].value_counts().field("counts").to_numpy())
    assert low < counts[-4:].sum() / counts.sum() < high  # the first tenth of the items


def test_segment_sizes_follow_their_exponent() -> None:
    equal, unequal = (
        np.bincount(plant(replace(SMALL, num_users=2000, segment_size_exponent=e)).user_segment)[:7]
        for e in (0.0, 1.0)
    )
    assert equal.max() - equal.min() <= 1
    assert np.all(np.diff(unequal) < 0)
    assert unequal[0] > 5 * unequal[6]


@settings(max_examples=60, deadline=None)
@given(
    num_shifted=st.integers(1, 20),
    unshifted=st.integers(0, 5),
    tiny=st.integers(0, 5),
    spare=st.integers(0, 50),
    exponent=st.floats(-3, 3),
)
def test_each_user_has_a_segment_and_each_segment_a_user(
    num_shifted: int, unshifted: int, tiny: int, spare: int, exponent: float
) -> None:
    config = replace(
        SMALL,
        num_segments=num_shifted + unshifted + tiny,
        unshifted_segments=unshifted,
        tiny_segments=tiny,
        tiny_rows=4,
        num_users=num_shifted + unshifted + 2 * tiny + spare,
        segment_size_exponent=exponent,
    )
    world = plant(config)
    assert len(world.user_segment) == config.num_users
    assert set(world.user_segment.tolist()) == set(range(config.num_segments))
    assert set(world.table()["segment"].to_pylist()) <= set(world.segment_names)


def test_the_written_log_is_the_table(tmp_path: Path) -> None:
    config = replace(SMALL, dim=2, num_choices=2, num_base_interactions=CHUNK_ROWS + 5)
    world = plant(config)
    seen: list[tuple[int, int]] = []
    path = write_log(world, tmp_path / "new" / "log.parquet", lambda *done: seen.append(done))
    assert read_parquet(path).equals(world.table())
    assert seen == [
        (rows, CHUNK_ROWS + 2005) for rows in (CHUNK_ROWS, CHUNK_ROWS + 5, world.num_rows)
    ]
    assert [file.name for file in path.parent.iterdir()] == ["log.parquet"]


def test_the_written_log_keeps_the_contract(tmp_path: Path) -> None:
    world = plant(SMALL)
    log = write_log(world, tmp_path / "raw.parquet")
    summary = prepare_log([log], tmp_path / "log", LogContract(duplicates="exact"))
    assert (summary.rows_kept, summary.quarantined) == (world.num_rows, {})
    assert sorted(Interactions.read(tmp_path / "log").segment_names) == sorted(world.segment_names)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def stop(written: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_log(plant(SMALL), tmp_path / "log.parquet", stop)
    assert list(tmp_path.iterdir()) == []


MEASURE = """
import resource, sys
from pathlib import Path
from reclora.datasets.planted import PlantedConfig, plant, write_log
config = PlantedConfig(num_items=50, dim=2, num_choices=2, num_interactions=int(sys.argv[1]))
write_log(plant(config), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_writing_needs_no_memory_for_the_rows(tmp_path: Path) -> None:
    def peak_bytes(rows: int) -> int:
        command = [sys.executable, "-c", MEASURE, str(rows), str(tmp_path / "log.parquet")]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    few, many = peak_bytes(CHUNK_ROWS), peak_bytes(16 * CHUNK_ROWS)
    # 15 more chunks of rows are 180 MB as a table; the allocator's own slack is well below that.
    assert many - few < 60e6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 17}, "rank to be from 1 to dim=16, got 17"),
        ({"num_segments": 3}, "num_segments to be at least 4"),
        ({"num_users": 16}, "num_users to be at least 17, got 16"),
        ({"num_interactions": 30}, "more rows in each period than the tiny segments' 30, got 30"),
        ({"signal": math.nan}, "signal to be finite and >= 0, got nan"),
        ({"shift": -1.0}, "shift to be finite and >= 0"),
        ({"segment_size_exponent": math.inf}, "segment_size_exponent to be finite"),
        ({"num_choices": 0}, "num_choices to be at least 1, got 0"),
        ({"tiny_rows": 0}, "tiny_rows to be at least 1"),
        ({"seed": -1}, "seed to be at least 0"),
    ],
)
def test_an_impossible_config_is_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PlantedConfig(), **fields)


def test_an_unknown_segment_is_refused() -> None:
    with pytest.raises(KeyError, match="us.mobile.*got .*market 1"):
        plant(SMALL).segment_shift("market 1")
