"""The settings of an adapter: what is refused, with which name offered, and how they are stored."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.configs import (
    FULL,
    AdapterConfig,
    AdapterError,
    Config,
    DeltaConfig,
    config_from_json,
    config_to_json,
)
from reclora.deltas import LowRank
from tests.small_worlds import KINDS

low_rank: dict[str, st.SearchStrategy[Any]] = {
    "rank": st.integers(1, 100),
    "alpha": st.floats(1e-6, 1e6) | st.integers(1, 64),
    "rank_stabilised": st.booleans(),
    "init": st.sampled_from(["normal", "orthogonal"]),
}


@st.composite
def table_texts(draw: st.DrawFn) -> str:
    """What a table takes: kinds that combine, in any order, with any spaces."""
    last = draw(st.sampled_from([[], ["rows"], ["basis"]]))
    kinds = draw(st.permutations([*draw(st.sets(st.sampled_from(["scale", "map"]))), *last]))
    return draw(st.sampled_from(["+", " + "])).join(kinds) or draw(
        st.sampled_from(["full", "none"])
    )


@st.composite
def adapter_configs(draw: st.DrawFn) -> AdapterConfig:
    user_table, item_table = draw(table_texts()), draw(table_texts())
    return AdapterConfig(
        user_table,
        item_table,
        draw(st.sampled_from(["bias", "none"])),
        draw(st.sampled_from(["low_rank", "full", "none"])),
        magnitude="rows" in user_table + item_table and draw(st.booleans()),
        **draw(st.fixed_dictionaries(low_rank)),
    )


@st.composite
def delta_configs(draw: st.DrawFn) -> DeltaConfig:
    kind = draw(st.sampled_from(["low_rank", "scale", "bias", "map", "basis", "rows"]))
    droppable = kind in ("low_rank", "rows", "basis")
    return DeltaConfig(
        tuple(draw(st.lists(st.text(max_size=8), min_size=1, max_size=3))),
        kind,
        dropout=draw(st.floats(0, 1, exclude_max=True)) if droppable else 0.0,
        magnitude=kind == "rows" and draw(st.booleans()),
        **draw(st.fixed_dictionaries(low_rank)),
    )


configs = adapter_configs() | st.lists(delta_configs(), min_size=1, max_size=3).map(tuple)


# What an adapter's config means.


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("rows", ("rows",)),
        ("rows+scale", ("scale", "rows")),
        ("basis + map +scale", ("scale", "map", "basis")),
        ("map + rows", ("map", "rows")),
        ("full", ("full",)),
        ("none", ()),
    ],
)
def test_kinds_follow_the_ladders_order(text: str, kinds: tuple[str, ...]) -> None:
    config = AdapterConfig(user_table=text, item_table="basis")
    assert config.user_kinds == kinds and config.item_kinds == ("basis",)
    assert AdapterConfig(item_table=text).item_kinds == kinds


def test_scaling_is_alpha_over_rank_or_over_its_root() -> None:
    for scaling, stabilised in ((1.5, False), (3.0, True)):
        config = AdapterConfig(rank=4, alpha=6.0, rank_stabilised=stabilised, init="orthogonal")
        delta = DeltaConfig(("a",), "map", 4, 6.0, stabilised, "orthogonal")
        assert config.scaling == scaling
        assert config.low_rank == delta.low_rank == LowRank(4, scaling, "orthogonal")


def test_full_is_everything_free() -> None:
    assert (FULL.user_kinds, FULL.item_kinds) == (("full",), ("full",))
    assert (FULL.item_bias, FULL.tower) == ("bias", "full")


# What is refused.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user_table": "row"}, "user_table must be one of .*, got 'row'; did you mean 'rows'?"),
        ({"item_table": "rows + scael"}, "item_table .* got 'scael'; did you mean 'scale'?"),
        ({"item_table": "qqqq"}, "item_table must be one of .*, got 'qqqq'$"),
        ({"item_table": ""}, "item_table must be one of .*, got ''"),
        ({"item_table": "rows +"}, "item_table must be one of .*, got ''"),
        ({"user_table": "Rows"}, "did you mean 'rows'?"),
        ({"user_table": "bias"}, "user_table got the kind `bias`, which is one of item_bias"),
        ({"item_table": "bias + rows"}, "item_table got the kind `bias`, .* one of item_bias"),
        ({"item_table": "low_rank"}, "item_table got the kind `low_rank`, .* one of tower"),
        ({"user_table": "full + rows"}, "user_table = 'full \\+ rows': .* stand alone"),
        ({"user_table": "none + scale"}, "`full` and `none` stand alone"),
        ({"item_table": "scale + scale"}, "item_table = 'scale \\+ scale' names a kind twice"),
        ({"item_table": "rows + basis"}, "`rows` can do all that `basis` can; take one"),
        ({"item_bias": "full"}, "item_bias must be one of bias, none, got 'full'"),
        ({"tower": "rows"}, "tower must be one of low_rank, full, none, got 'rows'"),
        ({"tower": "lowrank"}, "got 'lowrank'; did you mean 'low_rank'?"),
        ({"init": "orthogonl"}, "the adapter: init .* 'orthogonl'; did you mean 'orthogonal'?"),
        ({"rank": 0}, "the adapter: rank must be at least 1 .* got 0"),
        ({"rank": -3}, "rank must be at least 1 .* got -3"),
        ({"rank": 10**400}, "rank must be at least 1 .and below 2\\^31., got 1000"),
        ({"alpha": 0.0}, "alpha must be a positive number, got 0.0"),
        ({"alpha": -8.0}, "alpha must be a positive number, got -8.0"),
        ({"alpha": float("nan")}, "alpha must be a positive number, got nan"),
        ({"alpha": float("inf")}, "alpha must be a positive number, got inf"),
        ({"alpha": 10**400}, "alpha must be a positive number"),
        (
            {"magnitude": True, "user_table": "map", "item_table": "scale + basis"},
            "for the kind `rows`, but user_table is 'map' and item_table 'scale \\+ basis'",
        ),
    ],
)
def test_an_adapter_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        AdapterConfig(**values)


def test_a_magnitude_of_one_table_is_enough() -> None:
    assert AdapterConfig(user_table="none", item_table="scale + rows", magnitude=True).magnitude


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": "encoder.*"}, "targets must be a tuple of paths or patterns .*'encoder"),
        ({"targets": ()}, r"targets must be a tuple of paths or patterns .* \(\)"),
        ({"kind": "lowrank"}, "the delta on a, b.*: kind .*'lowrank'; did you mean 'low_rank'?"),
        ({"kind": "full"}, "kind must be one of low_rank, scale, bias, map, basis, rows, got"),
        ({"kind": "rows + scale"}, "kind must be one of"),
        ({"init": "gaussian"}, "the delta on a, b.*: init must be one of normal, orthogonal, got"),
        ({"rank": 0}, "the delta on a, b.*: rank must be at least 1"),
        ({"alpha": -1.0}, "the delta on a, b.*: alpha must be a positive number"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan"),
        ({"kind": "scale", "dropout": 0.1}, "the kind `scale` has neither: leave it out"),
        ({"kind": "bias", "dropout": 0.1}, "the kind `bias` has neither: leave it out"),
        ({"kind": "map", "dropout": 0.1}, "the kind `map` has neither: leave it out"),
        ({"magnitude": True}, "for the kind `rows` only.*got `low_rank`"),
        ({"kind": "basis", "magnitude": True}, "for the kind `rows` only.*got `basis`"),
    ],
)
def test_a_delta_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        DeltaConfig(**{"targets": ("a", "b.*"), "kind": "low_rank"} | values)


def test_targets_may_be_a_list_and_are_kept_as_a_tuple() -> None:
    config = DeltaConfig(["a", "b"], "rows")  # type: ignore[arg-type]
    assert config.targets == ("a", "b") and hash(config) == hash(DeltaConfig(("a", "b"), "rows"))


# As JSON.


@given(configs)
@settings(deadline=None)
def test_a_config_travels_as_json(config: Config) -> None:
    values = config_to_json(config)
    assert config_from_json(values) == config
    assert config_from_json(json.loads(json.dumps(values, allow_nan=False))) == config


def test_settings_that_are_not_written_are_the_defaults() -> None:
    """So that a setting of tomorrow can be absent from the file of today."""
    assert config_from_json({"rank": 4}) == AdapterConfig(rank=4)
    assert config_from_json({"deltas": [{"targets": ["a"], "kind": "map"}]}) == (
        DeltaConfig(("a",), "map"),
    )


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["rows", "none", "normal", "map + rows", "low_rank", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)  # fmt: skip
FIELDS = [*config_to_json(KINDS["rows"]), "targets", "kind", "dropout", "deltas", "other"]
hostile = st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, max_size=4)


@given(hostile | hostile.map(lambda delta: {"deltas": [delta]}) | ANY_JSON)
@settings(deadline=None, max_examples=300)
def test_what_is_no_config_is_a_type_or_value_error(values: Any) -> None:
    try:
        config = config_from_json(values)
    except (TypeError, ValueError):
        return
    assert config_from_json(config_to_json(config)) == config
    for one in config if isinstance(config, tuple) else (config,):
        assert one.low_rank.scaling >= 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": "8"}, "rank must be int, got '8'"),
        ({"rank": 8.0}, "rank must be int, got 8.0"),
        ({"rank": True}, "rank must be int, got True"),
        ({"magnitude": 1}, "magnitude must be bool, got 1"),
        ({"alpha": None}, "alpha must be float, got None"),
        ({"user_table": ["rows"]}, "user_table must be str, got"),
        ({"rnak": 8}, "rnak"),
        ({"deltas": [], "rank": 8}, "deltas"),
        ({"deltas": {}}, "expected a list of deltas, got {}"),
        ({"deltas": ["rows"]}, "expected settings of a DeltaConfig, got 'rows'"),
        ({"deltas": [{"targets": "a", "kind": "map"}]}, "targets must be tuple.*got 'a'"),
        ({"deltas": [{"targets": ["a", 1], "kind": "map"}]}, "targets must be a list of texts"),
        ({"deltas": [{"targets": ["a"]}]}, "kind"),
        ({"deltas": [{"targets": ["a"], "kind": "map", "rank": 0}]}, "rank must be at least 1"),
        ([], r"expected settings of a AdapterConfig, got \[\]"),
        (None, "expected settings of a AdapterConfig, got None"),
    ],
)
def test_what_is_wrong_with_json_is_told(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        config_from_json(values)
