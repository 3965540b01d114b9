"""The main job: train one adapter per segment in one pass, decide, publish, measure and report.

log -> windows -> base -> { pooled full fine-tune, pooled adapter -> per-segment adapters, ... }
    -> gate -> release in the store -> results on test -> comparison -> report

It can be killed at any time. The same command then goes on: what was trained and measured is kept
in the run's folder, what was published is not published again, and the bytes are those of an
unbroken run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reclora.bank import AdapterBank
from reclora.evaluation import Lists, ScorerOf
from reclora.files import read_parquet
from reclora.gate import CANDIDATE
from reclora.popularity import popularity
from reclora.ranking import Scorer
from reclora.store import AdapterStore, Release, Superseded
from reclora.training import TrainingError

from .aging import check_ages, measure_drift
from .alone import alone_in, writing_alone
from .assessment import Assessment, Tables, Yardstick, write_table
from .contenders import POOLED, Trained, train_contender
from .efforts import efforts_of
from .figures import figures_of, write_figures
from .gating import Decisions, decide_all
from .inputs import Inputs, data_quality
from .kept import Kept
from .learning import Learned, learn
from .live import KNOWN_UNTIL
from .orders import check_ranks
from .plan import bytes_needed, check_adapter, check_writable, is_done
from .progress import step
from .ranks import is_first, is_restarted, num_ranks, together
from .reporting import CURRENT, RELEASED, compared, write_run_report
from .run import FROM_SCRATCH, RunFolder, RunSettings, digest
from .scratch import SCRATCH, from_scratch
from .settings import SettingsError
from .space import check_space
from .yardstick import BASE, POPULARITY_RECENT, sliced, untrained, yardstick_of


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    folder: RunFolder
    store: Path
    release: int | None
    """The release that was published; None where nothing went live."""
    decisions: Decisions
    was_there: bool
    """The same run had been completed before, and was reused."""
    canary: float
    """The share of users that what passed is for, for now; 0: it is for all."""


def retrain(settings: RunSettings, only: Sequence[str] = (), resume: bool = True) -> Outcome:
    """Run the main job; a completed run of the same input, settings, versions and live release is
    reused, and an interrupted one is gone on with.

    Args:
        only: segments to train; the others stay as they are. Empty: all.
        resume: False throws away what an interrupted run has left.

    Under torchrun the first rank calls it, the others `help_first` (see `.orders`).

    Raises:
        LogError, SettingsError, BaseError, TrainingError, StoreError, ValueError: what is wrong
            with input or settings. What test cannot measure is found before anything is published;
            an error after that leaves what was published live.
        Busy: another run is at work in the same folder.
        OSError: a file cannot be written, or there is not enough room.
        KeyboardInterrupt: it was told to stop; it can be resumed.
    """
    if not is_first():
        raise SettingsError(
            "the first rank runs it, and this one helps: call reclora.pipelines.orders.help_first"
        )
    if num_ranks() > 1:
        settings = replace(settings, workers=1)
    # What ranks that were lost have left is gone on from, whatever the command says.
    resume = resume or is_restarted()
    check_ranks(settings)
    with together(settings.deadline_minutes), alone_in(settings.folder):
        check_writable(settings)
        inputs = Inputs.read(settings, only)
        folder, crew = inputs.folder, inputs.crew
        if is_done(settings, folder):
            if crew is not None:
                crew.leave()
            folder.tidy()
            summary = folder.summary()
            decisions = Decisions(read_parquet(folder.decisions).to_pandas())
            number, store = summary["release"], settings.store_folder
            return Outcome(folder, store, number, decisions, True, settings.gate.canary)
        check_adapter(settings, inputs.base, inputs.windows.train)
        check_ages(settings, inputs, only)
        held = folder.bytes_held if resume else 0
        check_space(settings.runs, bytes_needed(settings, inputs.windows) - held)
        # What test cannot measure is refused before anything is published.
        yardstick = yardstick_of(settings, inputs.base, inputs.windows, folder.id)
        with writing_alone(folder.path):
            if not resume:
                folder.forget()
            folder.begin()
            if crew is not None:
                crew.grow(inputs.base, folder.training)
            return _finish(settings, inputs, yardstick)


def _finish(settings: RunSettings, inputs: Inputs, yardstick: Yardstick) -> Outcome:
    """Train, decide, publish, measure and report."""
    folder = inputs.folder
    learned = learn(settings, inputs)
    release = inputs.published
    if release is None:
        with step("the gate: candidates against what is live") as progress:
            decisions = _decide(settings, inputs, learned)
            progress(1, 1)
    else:
        # What was decided is live: a segment whose worker had been killed then may have an adapter
        # now, and is not decided on again.
        decisions = _decided_before(settings, release)
    if release is None:
        folder.event("decided", **decisions.counts)
        release, decisions = publish(settings, inputs, learned, decisions)
    write_table(folder.decisions, decisions.table)
    number = None if release is None else release.number
    folder.event("published", release=number)
    assessment, decisions = measure(settings, inputs, learned, decisions, yardstick)
    write_table(folder.decisions, decisions.table)
    assessment.write_results(folder.results)
    drift = measure_drift(settings, inputs, learned, yardstick)
    if inputs.crew is not None:
        inputs.crew.leave()
    with step("comparing") as progress:
        tables = compared(assessment, folder)
        progress(1, 1)
    scratch = None
    if FROM_SCRATCH in settings.compared:
        scratch = from_scratch(settings, inputs, settings.seeds[0])
    efforts = efforts_of(settings, inputs, learned, scratch)
    figures = figures_of(settings.name, tables.means, efforts, settings.repeat)
    write_figures(folder.figures, figures)
    quality = data_quality(inputs.summary, inputs.cut, inputs.unknown, yardstick)
    write_run_report(
        settings, inputs, learned, decisions, assessment, tables, quality, efforts, number, drift
    )
    facts = {
        "data_quality": quality,
        "search": learned.searches.to_dict("records"),
        "decisions": decisions.counts,
    }
    if learned.rungs is not None:
        facts["kinds"] = learned.rungs.to_dict("records")
    if drift is not None:
        write_table(folder.drift, drift.table)
        facts["aging"] = drift.says
    _track(settings, folder, tables, decisions, number)
    folder.complete({"release": number, **facts})
    return Outcome(folder, settings.store_folder, number, decisions, False, settings.gate.canary)


def _decide(settings: RunSettings, inputs: Inputs, learned: Learned) -> Decisions:
    """Against what is live, on the validation users who chose no epoch."""
    ground, subject = replace(learned.ground, users="odd"), learned.subject
    frozen = inputs.base.scorer()
    others: dict[str, ScorerOf] = {
        BASE: lambda segment: frozen,
        POPULARITY_RECENT: popularity(inputs.windows.train),
    }
    if subject.parent is not None:
        alone = AdapterBank.of(inputs.base, [subject.parent]).scorer(subject.parent.segment)
        others["parent"] = lambda segment: alone
    return decide_all(
        subject,
        inputs.windows,
        ground.held_out,
        others,
        learned.ground.log,
        inputs.live.scorer_of,
        set(inputs.live.start),
        settings.gate,
        learned.parent_helped,
        _kept(settings, inputs),
    ).with_absent(inputs.absent)


def _decided_before(settings: RunSettings, release: Release) -> Decisions:
    table = AdapterStore(settings.store_folder).decisions(release)
    assert table is not None, "a run publishes its decisions"
    return Decisions(table)


def publish(
    settings: RunSettings, inputs: Inputs, learned: Learned, decisions: Decisions
) -> tuple[Release | None, Decisions]:
    """Publish what passed the gate, in one release with all decisions; None where nothing did.

    Segments that others have changed since the run began stay as those left them.
    """
    store, subject = AdapterStore(settings.store_folder), learned.subject
    begun = inputs.live.release
    while True:
        current = store.current()
        if current is not None and (begun is None or begun.number < current.number):
            changed = set(current.segments)
            if begun is not None:
                changed = set(store.diff(begun, current)["segment"])
            why = f"it was changed by others, by release {current.number}, while this run was at it"
            decisions = decisions.without(changed, why)
        promoted, served = decisions.of("promoted"), decisions.of("fell back")
        if not promoted and not served:
            return None, decisions
        try:
            release = store.publish(
                [subject.bank.adapter(name) for name in promoted],
                reason=f"{inputs.folder.id}: {_why(settings)}",
                author=settings.author or None,
                metrics=_metrics(settings, learned, decisions),
                serves_parent=served,
                parent=subject.parent,
                run=inputs.folder.id,
                decisions=decisions.table,
                canary=settings.gate.canary or None,
                onto=0 if current is None else current.number,
            )
        except Superseded:
            continue
        return release, decisions


def _why(settings: RunSettings) -> str:
    return "no gate" if settings.gate.rule == "none" else "better on validation"


def _metrics(
    settings: RunSettings, learned: Learned, decisions: Decisions
) -> dict[str, dict[str, float]]:
    """What the release says of each segment that goes live."""
    means = decisions.table.set_index("segment")
    measure = f"validation {settings.evaluation.headline}"
    columns = {CANDIDATE: "", "live": " of what was live", BASE: " of the base"}
    return {
        name: {f"{measure}{of}": float(means[column][name]) for column, of in columns.items()}
        | {KNOWN_UNTIL: learned.known_until}
        for name in sorted(decisions.goes_live)
    }


def measure(
    settings: RunSettings,
    inputs: Inputs,
    learned: Learned,
    decisions: Decisions,
    yardstick: Yardstick,
) -> tuple[Assessment, Decisions]:
    """Measure on test: what needs no training, what was live, what was trained, and what is live
    now; of what is trained every other seed too, which says how far the first can be trusted, and
    which of its decisions flip.

    Raises:
        ValueError: a score is NaN; the segment is named.
        OSError: what is measured cannot be kept.
    """
    base, windows, folder, live = inputs.base, inputs.windows, inputs.folder, inputs.live
    assessment = Assessment(sliced(yardstick, windows), _kept(settings, inputs))
    models = untrained(base, windows)
    if live.release is not None:
        models[CURRENT] = live.scorer_of
    served: Lists | None = None
    for model, scorer_of in models.items():
        with step(f"ranking: {model}") as progress:
            lists = assessment.rank(model, scorer_of, progress=progress)
        if model in (BASE, CURRENT):
            served = lists

    def rank(trained: Trained, seed: int) -> Lists:
        model = trained.contender.model
        with step(f"ranking: {model}, seed {seed}") as progress:
            return assessment.rank(
                model, trained.scorer_of(), seed, trained.fingerprint, progress=progress
            )

    for seed in settings.seeds if FROM_SCRATCH in settings.compared else ():
        scorer = from_scratch(settings, inputs, seed).base.scorer()
        with step(f"ranking: {SCRATCH}, seed {seed}") as progress:
            assessment.rank(SCRATCH, _same(scorer), seed, progress=progress)
    first, *others = settings.seeds
    for trained in learned.trained:
        lists = rank(trained, first)
        if trained is learned.subject:
            candidate = lists
    decided = dict[int, Decisions]()
    for seed in others:
        ground, retrained = learned.ground, list[Trained]()
        for choice in learned.choices:
            with step(f"training: {choice.contender.model}, seed {seed}") as progress:
                try:
                    trained = train_contender(choice.contender, ground, choice.config, seed)
                except TrainingError as error:
                    # What is live is of the first seed; this one is not measured, and the rest of
                    # it neither, which may stand on it.
                    print(f"seed {seed} is left out: {error}", file=sys.stderr)
                    folder.event("left out", model=choice.contender.model, seed=seed)
                    break
                progress(1, 1)
            folder.event("trained", model=choice.contender.model, seed=seed)
            if choice.contender.model == POOLED:
                ground = replace(ground, parent=trained.bank.adapters()[0])
            rank(trained, seed)
            retrained.append(trained)
        else:
            with step(f"the gate, seed {seed}") as progress:
                decided[seed] = _decide(settings, inputs, replace(learned, trained=retrained))
                progress(1, 1)
    if decided:
        # Others may have kept back since then what the first seed came to.
        decided = {first: _decide(settings, inputs, learned)} | decided
        decisions = decisions.across(decided)
    assert served is not None, "the base is always ranked"
    lives = set() if settings.gate.canary else decisions.goes_live
    now = {
        name: candidate.segments[name] if name in lives else its
        for name, its in served.segments.items()
    }
    assessment.take(RELEASED, Lists(now), digest(learned.subject.fingerprint, sorted(lives)))
    return assessment, decisions


def _same(scorer: Scorer) -> ScorerOf:
    """Of every segment."""
    return lambda segment: scorer


def _kept(settings: RunSettings, inputs: Inputs) -> Kept:
    return Kept(inputs.folder.measuring, settings.workers, inputs.crew)


def _track(
    settings: RunSettings,
    folder: RunFolder,
    tables: Tables,
    decisions: Decisions,
    number: int | None,
) -> None:
    """Tell MLflow of the night, where it is asked for; a server that is down spoils no night."""
    if not settings.tracking:
        return
    from .tracking import Night, track

    means, evaluation = tables.means, settings.evaluation
    wanted = (means["metric"] == evaluation.metrics[0]) & (means["k"] == evaluation.ks[0])
    whole = means[wanted & (means["scope"] == "all")]
    night = Night(
        run=folder.id,
        params={"measure": evaluation.headline},
        metrics={
            str(model): float(mean)
            for model, mean in zip(whole["model"], whole["mean"], strict=True)
        }
        | {f"segments {status}": float(n) for status, n in decisions.counts.items()},
        table=decisions.table,
        report=folder.report,
        release=number,
    )
    try:
        track(settings.tracking, settings.name, night)
    except Exception as error:  # noqa: BLE001
        print(f"not tracked at {settings.tracking}: {error}", file=sys.stderr)
