"""What a study of bases takes as chosen, of all that was tried; whole studies are in test_bases."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from reclora.factorisation import FactorisationConfig
from reclora.pipelines.bases_chosen import Trained, Tried, judgements

CURVES = st.dictionaries(st.integers(1, 99), st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=1)


@given(CURVES)
def test_of_equal_judgements_the_first_is_best(curve: dict[int, float]) -> None:
    """Fewer epochs for the same value."""
    tried = Tried(FactorisationConfig(), sorted(curve.items()))
    top = max(curve.values())
    assert tried.best == (min(epochs for epochs, value in curve.items() if value == top), top)


@given(st.lists(CURVES, min_size=1, max_size=4), st.data())
def test_every_judgement_is_told_and_one_of_each_model_is_chosen(
    curves: list[dict[int, float]], data: st.DataObject
) -> None:
    """Even where settings that differ in nothing said the same."""
    config = FactorisationConfig(temperature=0.2)
    tried = [Tried(config, sorted(curve.items())) for curve in curves]
    models = {
        name: Trained(tried, data.draw(st.sampled_from(tried)), list[Path]()) for name in "ab"
    }
    table = judgements(models)
    assert len(table) == 2 * sum(map(len, curves)) and set(table["temperature"]) == {0.2}
    for name, model in models.items():
        own = table[table["model"] == name]
        told = [judged for each in tried for judged in each.curve]
        assert list(zip(own["epochs"], own["value"], strict=True)) == told
        assert own["chosen"].sum() == 1
        (line,) = own[own["chosen"]].to_dict("records")
        assert (line["epochs"], line["value"]) == model.chosen.best
