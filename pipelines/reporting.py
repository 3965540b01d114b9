"""From a run's results to its report: the comparisons, the state of each segment, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from reclora.adapters import Adapter
from reclora.arithmetic import singular_values
from reclora.bank import AdapterBank
from reclora.configs import AdapterConfig
from reclora.drift import Drift
from reclora.interactions import Interactions
from reclora.report import TO_TELL, Report, write_report
from reclora.splits import Windows
from reclora.stability import NOT_DECIDED

from .assessment import Assessment, Tables
from .contenders import SEARCHED, SUBJECT, Trained
from .figures import Effort
from .gating import Decisions
from .inputs import Inputs
from .learning import Learned
from .run import RunFolder, RunSettings, Search, versions
from .sections import definitions, sections_of
from .settings import resolved
from .yardstick import BASE, split_notes


def pairs_of(models: Sequence[str], subject: str, baseline: str) -> list[tuple[str, str]]:
    """(model, baseline) of every model over the baseline, and of the subject over every model."""
    pairs = [(model, baseline) for model in models if model != baseline]
    return pairs + [(subject, model) for model in models if model not in (subject, baseline)]


def segment_states(windows: Windows, subject: Trained, decisions: Decisions) -> pd.DataFrame:
    """One row a segment: rows and users it trained on, what it stores, how it came out."""
    rows = []
    decided = decisions.table.set_index("segment")[["status", "reason"]]
    across = decisions.table.set_index("segment").get("across_seeds", pd.Series(dtype=str))
    for code, name in enumerate(windows.train.segment_names):
        train, validation, test = (
            _count(getattr(windows, w), code) for w in ("train", "validation", "test")
        )
        epoch = subject.training.best_epoch[name]
        adapter = subject.bank.adapter(name) if epoch else None
        status, reason = decided.loc[name]
        rows.append(
            {
                "segment": name,
                "train rows": train[0],
                "train users": train[1],
                "validation rows": validation[0],
                "test rows": test[0],
                "deltas": describe(_of_base(subject.bank, code)),
                "numbers": 0 if adapter is None else adapter.num_numbers,
                "bytes": 0 if adapter is None else num_bytes(adapter),
                "best epoch": epoch,
                "decision": f"{status}, {NOT_DECIDED}"
                if across.get(name) == NOT_DECIDED
                else str(status),
                "reason": str(reason),
            }
        )
    return pd.DataFrame(rows)


def num_bytes(adapter: Adapter) -> int:
    """What an adapter's tensors take in a pack, the identifiers of its rows not counted."""
    return sum(tensor.nbytes for tensor in adapter.tensors.values())


SPECTRA_OF = 500
"""Spectra are those of so many segments, the ones with the most rows: their mean says enough."""


def spectra_of(subject: Trained, windows: Windows) -> pd.DataFrame:
    """segment, delta, direction, energy of the adapters that helped, and of their parent."""
    sizes = dict(
        zip(windows.train.segment_names, np.diff(windows.train.offsets).tolist(), strict=True)
    )
    largest = sorted(subject.helped, key=lambda name: -sizes.get(name, 0))[:SPECTRA_OF]
    adapters = [subject.bank.adapter(name) for name in largest]
    rows = []
    for adapter in [*adapters, *([subject.parent] if subject.parent is not None else [])]:
        if isinstance(adapter.config, AdapterConfig) and adapter.config.magnitude:
            continue
        of = "" if adapter is not subject.parent else ", parent"
        for delta, values_R in singular_values(adapter).items():
            energy_R = values_R.square()
            if total := float(energy_R.sum()):
                rows += [
                    {"segment": adapter.segment, "delta": f"{delta}{of}", "direction": at}
                    | {"energy": energy / total}
                    for at, energy in enumerate(energy_R.tolist(), 1)
                ]
    return pd.DataFrame(rows)


def with_advice(
    states: pd.DataFrame, comparison: pd.DataFrame, metric: str, k: int
) -> pd.DataFrame:
    """The states of segments with what it takes to tell each of which nothing can be told: how many
    more users would show the difference that was seen (`Effect.users_needed`). Empty where that
    many were not enough, or no difference was seen: the note says why.
    """
    frame = comparison[(comparison["metric"] == metric) & (comparison["k"] == k)]
    frame = frame[(frame["model"] == SUBJECT) & (frame["baseline"] == BASE)]
    untold = frame[(frame["scope"] == "segment") & (frame["verdict"] == "cannot tell")]
    more = dict(zip(untold["segment"], untold["users_needed"] - untold["users"], strict=True))
    said = [
        f"about {float(f'{more[s]:.1e}'):,.0f} more users" if 0 < more.get(s, 0) < 1e9 else ""
        for s in states["segment"]
    ]
    return states.assign(**{TO_TELL: said})


def _count(log: Interactions, code: int) -> tuple[int, int]:
    rows = slice(int(log.offsets[code]), int(log.offsets[code + 1]))
    return rows.stop - rows.start, len(np.unique(log.user_rows[rows]))


def _of_base(bank: AdapterBank, code: int) -> AdapterConfig:
    """A segment's config, but for the tower that the base has not."""
    config = bank.configs[code]
    return config if bank.base.tower is not None else replace(config, tower="none")


def describe(config: AdapterConfig) -> str:
    """The kinds of a config in a few words: `bias, map of users and items`."""
    kinds = ["bias"] if config.item_bias == "bias" else []
    if config.user_table == config.item_table != "none":
        kinds.append(f"{config.user_table} of users and items")
    else:
        for side, kind in (("users", config.user_table), ("items", config.item_table)):
            kinds += [f"{kind} of {side}"] if kind != "none" else []
    kinds += [f"{config.tower} of the tower"] if config.tower != "none" else []
    return ", ".join(kinds) or "none"


def compared(assessment: Assessment, folder: RunFolder) -> Tables:
    """Compare what the run measured, and write the tables into its folder."""
    pairs = pairs_of(assessment.models, SUBJECT, BASE)
    tables = assessment.tables(pairs, sliced=[(SUBJECT, BASE)])
    tables.write(folder.path)
    return tables


def write_run_report(
    settings: RunSettings,
    inputs: Inputs,
    learned: Learned,
    decisions: Decisions,
    assessment: Assessment,
    tables: Tables,
    quality: Mapping[str, int],
    efforts: Mapping[str, Effort],
    release: int | None,
    drift: Drift | None = None,
) -> None:
    """Write the run's page."""
    evaluation = settings.evaluation
    costs = [
        {"model": model, "numbers": effort.numbers, "seconds": effort.seconds}
        for model, effort in efforts.items()
    ]
    write_report(
        inputs.folder.report,
        Report(
            title=f"Do per-segment adapters help? {settings.name}",
            run=inputs.folder.id,
            subject=SUBJECT,
            baseline=BASE,
            metric=evaluation.metrics[0],
            k=evaluation.ks[0],
            means=tables.means,
            lifts=tables.comparison,
            segments=with_advice(
                segment_states(inputs.windows, learned.subject, decisions),
                tables.comparison,
                evaluation.metrics[0],
                evaluation.ks[0],
            ),
            curves=_curves(learned.trained),
            split=inputs.cut.table,
            data_quality=quality,
            definitions=definitions(tables),
            settings=resolved(settings) | {"chosen on validation": _chosen(learned.searches)},
            versions=versions(),
            repeat=settings.repeat,
            notes=_notes(settings, learned, decisions, assessment),
            sections=sections_of(tables, evaluation.ks[0], SUBJECT, BASE, drift),
            outcome=_outcome(settings, decisions, release),
            costs=pd.DataFrame(costs),
            spectra=spectra_of(learned.subject, inputs.windows),
        ),
    )


def _curves(trained: Sequence[Trained]) -> pd.DataFrame:
    parts = [
        t.training.curves.assign(
            model=t.contender.model,
            segment="" if t.contender.is_pooled else t.training.curves["segment"],
            value=t.training.curves["score"],
        )[["model", "segment", "epoch", "value"]]
        for t in trained
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset=["value"])


def _chosen(searches: pd.DataFrame) -> dict[str, dict[str, float]]:
    chosen = searches[searches["chosen"]]
    columns = [*SEARCHED, "value"]
    return {str(row["model"]): {c: row[c] for c in columns} for _, row in chosen.iterrows()}


def _notes(
    settings: RunSettings, learned: Learned, decisions: Decisions, assessment: Assessment
) -> list[str]:
    seeds = f"the mean of {len(settings.seeds)} seeds" if len(settings.seeds) > 1 else "of one seed"
    notes = [
        f"Each trained model is {seeds}; the base model is one, so intervals say nothing about "
        "another base.",
        _published(settings, decisions, assessment),
        "Rates of tables and bias of every trained model were chosen on validation from one grid; "
        "test chose nothing.",
        *_kinds(learned),
        "Recent popularity counts the adapt window; all-time popularity everything before test.",
        *before_and_after(settings, decisions, assessment.models),
        "Curves show the headline metric on validation, of the first seed.",
    ]
    edges = _at_the_edge(settings.search, learned.searches)
    if edges:
        notes.append(f"Chosen at the edge of the grid, so a wider one may do better: {edges}.")
    notes += split_notes(settings)
    return notes


def _kinds(learned: Learned) -> list[str]:
    """How the kinds of the segments' own adapters came about."""
    if learned.rungs is None:
        return []
    chosen = learned.rungs[learned.rungs["chosen"]]
    picked = "; ".join(
        f"up to {row['rows']:,} rows: {row['rung']} ({row['segments']:,} segments)"
        for _, row in chosen.iterrows()
    )
    return [
        f"What a segment's own adapter has was picked by its size, on validation: {picked}. Of the "
        "rungs whose users do no worse than the best one's by more than a standard error, the "
        "lowest is taken: parent, bias, map, basis, top (all that [adapter] says)."
    ]


def _outcome(settings: RunSettings, decisions: Decisions, release: int | None) -> str:
    """What went live."""
    counts = ", ".join(f"{n:,} {status}" for status, n in decisions.counts.items())
    flips = ""
    if decisions.not_decided:
        flips = f" Not decided in {decisions.not_decided:,}: other seeds come to something else."
    if release is None:
        return f"Nothing went live: {counts}.{flips}"
    share = settings.gate.canary
    whom = f"for {share:.0%} of the users" if share else "for all users"
    return f"Release {release} went live, {whom}: {counts}.{flips}"


def _published(settings: RunSettings, decisions: Decisions, assessment: Assessment) -> str:
    """What went live, and what it scores."""
    evaluation, seed = settings.evaluation, settings.seeds[0]
    own = assessment.mean_of(SUBJECT, evaluation.metrics[0], evaluation.ks[0])
    return (
        f"Candidates are the adapters of seed {seed}, which alone has "
        f"{evaluation.headline} {own:.4f}; where an own adapter did not help, the "
        "parent of that seed. Each was held against what was live on the validation users who "
        "chose none of its epochs; decisions.parquet has the numbers."
    )


CURRENT, RELEASED = "live before the run", "live after the run"
"""What was live before a run, where something was, and what is live after it."""


def before_and_after(
    settings: RunSettings, decisions: Decisions, models: Sequence[str]
) -> list[str]:
    """In how many segments the rows of what was live before the run and after it differ."""
    if CURRENT in models:
        first, before = "", f"“{CURRENT}”"
    else:
        first, before = "Nothing was live before the run; ", f"the {BASE}"
    lives = 0 if settings.gate.canary else len(decisions.goes_live)
    if lives:
        now = f"what it published in {lives:,} of {len(decisions.table):,} segments"
        now += f", and {before} in the others" if lives < len(decisions.table) else ""
    else:
        now = f"{before}, as " + (
            "candidates wait" if settings.gate.canary else "nothing went live"
        )
    return [f"{first}“{RELEASED}” is {now}."]


def _at_the_edge(search: Search, searches: pd.DataFrame) -> str:
    chosen = searches[searches["chosen"]]
    return "; ".join(
        f"{row['model']}: {rate} {row[rate]:g}"
        for _, row in chosen.iterrows()
        for rate in SEARCHED
        if len(grid := getattr(search, rate)) > 1 and row[rate] in (min(grid), max(grid))
    )
