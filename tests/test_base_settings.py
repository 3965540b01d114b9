"""The settings of a base: what is refused, and what a search tries."""

from pathlib import Path

import pytest

from reclora.factorisation import FactorisationConfig
from reclora.pipelines.base_settings import BaseSearch, BaseSettings


def test_a_base_that_cannot_be_is_refused() -> None:
    users, items = Path("users.parquet"), Path("items.parquet")
    with pytest.raises(ValueError, match="go together; only one is given"):
        BaseSettings(import_users=users)
    with pytest.raises(ValueError, match="import_tables needs import_users and import_items"):
        BaseSettings(import_tables=users)
    with pytest.raises(ValueError, match="both name a base model"):
        BaseSettings(saved=users, import_users=users, import_items=items)
    with pytest.raises(ValueError, match="hidden widths must be at least 1"):
        BaseSettings(hidden=(8, 0))
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="half_life must be 0"):
            BaseSettings(half_life=wrong)


def test_a_search_is_refused_before_anything_trains() -> None:
    for search in (BaseSearch((0.1, 0.0)), BaseSearch(l2=(-1.0,)), BaseSearch(half_life=(-2.0,))):
        with pytest.raises(ValueError, match="must be"):
            BaseSettings(search=search)


def test_the_grid_is_the_product_and_an_empty_list_leaves_what_is_said() -> None:
    tables = FactorisationConfig(temperature=0.7, bias_lr=0.5, l2=0.25)
    search = BaseSearch((0.1, 0.2), (), (), (30.0, 0.0))
    found = [s.searched for s in BaseSettings(tables, half_life=9.0, search=search).grid()]
    assert found == [
        {"temperature": t, "bias_lr": 0.5, "l2": 0.25, "half_life": h}
        for t in (0.1, 0.2)
        for h in (30.0, 0.0)
    ]
    (same,) = BaseSettings(tables, half_life=9.0, search=BaseSearch(())).grid()
    assert same.searched == {"temperature": 0.7, "bias_lr": 0.5, "l2": 0.25, "half_life": 9.0}
    assert same.grid() == [same]


@pytest.mark.parametrize(
    "tables", [FactorisationConfig(loss="ials", l2=0.1), FactorisationConfig(similarity="dot")]
)
def test_where_there_is_no_cosine_no_temperature_is_tried(tables: FactorisationConfig) -> None:
    assert len(BaseSettings(tables).grid()) == 1
