"""The ladder: what its rungs are, which segments are judged together, which rung they stand on."""

import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reclora.configs import FULL, LADDER, AdapterConfig
from reclora.ladder import (
    MIN_USERS,
    PARENT,
    choose_rungs,
    rungs,
    size_classes,
    smallest_within_error,
)
from tests.small_worlds import KINDS

ORDER = ("none", *LADDER, "full")
TABLES = ("none", "scale", "map", "basis", "rows", "full", "scale + map", "map + rows")
NAMES = (PARENT, "bias", "map", "basis", "top")


def test_the_ladder_up_to_the_default() -> None:
    top = AdapterConfig(rank=3, alpha=5.0, rank_stabilised=True, init="orthogonal")
    nothing = replace(top, user_table="none", item_table="none", item_bias="none", tower="none")
    bias = replace(nothing, item_bias="bias")
    assert list(rungs(top).items()) == [
        ("parent", nothing),
        ("bias", bias),
        ("map", replace(bias, user_table="map", item_table="map")),
        ("basis", replace(bias, user_table="basis", item_table="basis")),
        ("top", top),
    ]


@pytest.mark.parametrize(
    ("top", "names"),
    [
        (KINDS["bias"], ["parent", "bias"]),
        (KINDS["tower"], ["parent", "top"]),
        (KINDS["map"], ["parent", "bias", "map"]),
        (replace(KINDS["map"], tower="low_rank"), ["parent", "bias", "map", "top"]),
        (KINDS["basis"], ["parent", "map", "basis"]),
        (KINDS["magnitude"], ["parent", "map", "basis", "top"]),
        (FULL, list(NAMES)),
    ],
)
def test_a_rung_that_says_nothing_new_is_left_out(top: AdapterConfig, names: list[str]) -> None:
    assert list(rungs(top)) == names


@given(
    st.sampled_from(TABLES),
    st.sampled_from(TABLES),
    st.sampled_from(["bias", "none"]),
    st.sampled_from(["low_rank", "full", "none"]),
)
def test_rungs_rise_from_nothing_to_the_top(user: str, item: str, bias: str, tower: str) -> None:
    """Every rung has at least what the one below has, and nothing that the top has not."""
    top = AdapterConfig(user, item, bias, tower)  # type: ignore[arg-type]
    ladder = rungs(top)
    assert [name for name in NAMES if name in ladder] == list(ladder)
    assert next(iter(ladder)) == PARENT and list(ladder.values())[-1] == top
    assert len(set(ladder.values())) == len(ladder)
    heights = [
        [
            *(
                max((ORDER.index(k) for k in kinds), default=0)
                for kinds in (c.user_kinds, c.item_kinds)
            ),
            c.item_bias != "none",
            c.tower != "none",
        ]
        for c in ladder.values()
    ]
    assert not any(heights[0])
    for below, above in zip(heights, heights[1:], strict=False):
        assert all(low <= high for low, high in zip(below, above, strict=True))


def plain_classes(rows: list[int], users: list[int]) -> list[int]:
    """Sizes are numbers of digits; from the smallest on, taken together until there are enough
    users; what remains at the end belongs to the last.
    """
    groups: list[list[int]] = [[]]
    for digits in sorted({len(str(n)) for n in rows}):
        groups[-1].append(digits)
        if (
            sum(u for u, n in zip(users, rows, strict=True) if len(str(n)) in groups[-1])
            >= MIN_USERS
        ):
            groups.append([])
    leftover = groups.pop()
    if not groups:
        groups.append([])
    groups[-1] += leftover
    return [next(g for g, group in enumerate(groups) if len(str(n)) in group) for n in rows]


sizes = st.one_of(st.integers(0, 40), st.integers(0, 10**12), st.sampled_from([9, 10, 999, 1000]))


@given(st.lists(st.tuples(sizes, st.integers(0, 60)), min_size=1, max_size=12))
def test_classes_equal_plain_loops(segments: list[tuple[int, int]]) -> None:
    rows, users = ([s[i] for s in segments] for i in (0, 1))
    found = size_classes(np.array(rows), np.array(users))
    assert found.tolist() == plain_classes(rows, users)


def test_a_few_small_segments_join_the_next_size_and_large_ones_stay_alone() -> None:
    rows = np.array([5, 50, 60, 500, 510, 520, 530, 5000, 5100])
    users = np.array([40, 40, 40, 40, 40, 0, 40, 40, 40])
    assert size_classes(rows, users).tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    # Three below a hundred are too few; with those below a thousand six have users.
    assert size_classes(rows, users, 4).tolist() == [0] * 7 + [1] * 2
    assert size_classes(rows[:3], users[:3], 4).tolist() == [0] * 3


def test_every_power_of_ten_begins_a_class() -> None:
    rows = np.array([n for d in range(1, 13) for n in (10**d - 1, 10**d)])
    found = size_classes(rows, np.full(len(rows), MIN_USERS))
    assert found.tolist() == [len(str(n)) - 1 for n in rows.tolist()]


def values_of(parts: dict[str, np.ndarray]) -> pd.DataFrame:
    """Segment -> the value of each of its users, as rows of the results table."""
    return pd.DataFrame(
        [(s, f"u{u}", v) for s, values in parts.items() for u, v in enumerate(values.tolist())],
        columns=["segment", "user_id", "value"],
    ).astype({"segment": "category"})


def plain_choice(values: dict[str, list[float]]) -> str:
    """The lowest rung whose paired differences to the best are within a standard error of zero."""
    first, *_ = values
    if not values[first]:
        return first
    best = values[max(values, key=lambda name: statistics.fmean(values[name]))]
    for name, own in values.items():
        gaps = [b - o for b, o in zip(best, own, strict=True)]
        if len(gaps) == 1:
            return first
        behind, error = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
        assume(best is own or behind == error == 0 or abs(behind - error) > 1e-9)
        if behind <= error:
            return name
    raise AssertionError("the best is not behind itself")


@given(
    st.lists(
        st.tuples(st.sampled_from([3, 40, 700, 5000]), st.integers(0, 45)), min_size=1, max_size=6
    ),
    st.lists(st.floats(0, 0.6), min_size=2, max_size=5),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_choice_equals_plain_loops(
    segments: list[tuple[int, int]], effects: list[float], seed: int
) -> None:
    """Whatever the order of the rows in the tables."""
    rng = np.random.default_rng(seed)
    noise = {f"s{s}": rng.normal(size=users) for s, (_, users) in enumerate(segments)}
    parts = {
        name: {
            s: level + effect * rng.normal(1, 1, len(level)) * rng.integers(2, size=len(level))
            for s, level in noise.items()
        }
        for name, effect in zip(NAMES, effects, strict=False)
    }
    rows = {f"s{s}": n for s, (n, _) in enumerate(segments)}
    tables = {
        name: values_of(part).sample(frac=1, random_state=rng) for name, part in parts.items()
    }
    chosen, compared = choose_rungs(tables, rows)
    classes = plain_classes(list(rows.values()), [users for _, users in segments])
    assert set(chosen) == set(rows)
    for number in set(classes):
        members = [s for s, c in zip(rows, classes, strict=True) if c == number]
        pooled = {
            name: np.concatenate([part[s] for s in members]).tolist()
            for name, part in parts.items()
        }
        assert {chosen[s] for s in members} == {plain_choice(pooled)}
        said = compared[compared["class"] == number]
        assert said["rung"].tolist() == list(parts) and said["chosen"].sum() == 1
        assert set(said["segments"]) == {len(members)}
        assert set(said["rows"]) == {max(rows[s] for s in members)}
        assert set(said["users"]) == {len(pooled[PARENT])}
        if pooled[PARENT]:
            expected = [statistics.fmean(v) for v in pooled.values()]
            np.testing.assert_allclose(said["mean"], expected, atol=1e-12)
        assert said.loc[said["chosen"], "rung"].item() == chosen[members[0]]
    assert len(compared) == len(set(classes)) * len(parts)


def test_a_lower_rung_is_taken_unless_it_is_surely_worse() -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(size=400)
    tables = {
        "parent": values_of({"small": level, "large": level}),
        "bias": values_of({"small": level + rng.normal(0.001, 0.2, 400), "large": level + 0.1}),
        "top": values_of({"small": level + rng.normal(0, 0.2, 400), "large": level + 0.101}),
    }
    tables["top"].loc[400, "value"] -= 0.3  # the large segment's first user disagrees
    chosen, compared = choose_rungs(tables, {"small": 90, "large": 9_000, "none": 0})
    assert chosen == {"small": "parent", "large": "bias", "none": "parent"}
    assert compared["segments"].tolist() == [2] * 3 + [1] * 3
    large = compared[compared["class"] == 1].set_index("rung")
    assert large.at["top", "behind"] == large.at["top", "error"] == 0
    assert large.at["bias", "behind"] == pytest.approx(0.001 - 0.3 / 400)
    assert large.at["bias", "error"] == pytest.approx(0.3 / 400)


@pytest.mark.parametrize("users", [0, 1])
def test_nobody_and_one_user_cannot_tell(users: int) -> None:
    tables = {
        name: values_of({"a": np.full(users, value)})
        for name, value in (("parent", 0.0), ("bias", 0.5), ("top", 1.0))
    }
    chosen, compared = choose_rungs(tables, {"a": 1000})
    assert chosen == {"a": "parent"} and compared["error"].notna().all()


def test_rungs_judged_by_different_users_are_refused() -> None:
    tables = {
        "parent": values_of({"a": np.zeros(3)}),
        "bias": values_of({"a": np.zeros(4)}),
    }
    with pytest.raises(ValueError, match="rung 'bias' was judged by other users than 'parent'"):
        choose_rungs(tables, {"a": 5})


def test_the_smallest_within_an_error_is_taken_and_a_better_one_beyond_it() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)

    def of(mean: float) -> pd.DataFrame:
        users = [f"u{n}" for n in range(200)]
        return pd.DataFrame({"segment": "a", "user_id": users, "value": mean + noise})

    jitter = rng.normal(scale=0.1, size=200)
    near, far = of(0.001), of(0.05)
    near["value"] += jitter
    far["value"] += jitter
    assert smallest_within_error({"small": of(0.0), "large": near}) == "small"
    assert smallest_within_error({"small": of(0.0), "large": far}) == "large"
    assert smallest_within_error({"small": far, "large": of(0.0)}) == "small"
    # The same users in another order are the same users.
    assert smallest_within_error({"small": of(0.0), "large": far[::-1]}) == "large"
