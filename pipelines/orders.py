"""What the ranks of a run do together: the first one gives orders, and all carry them out.

The first rank runs it: it alone reads the log, chooses, decides, publishes and writes. An order is
a line of JSON that it tells all:

| order | every rank |
|---|---|
| open | opens its share of the base's tables |
| grow | knows these identifiers too |
| train | trains its chunks of segments |
| rank | ranks its users |
| leave | is needed no more |

What a rank needs for its share, rows of its segments, its users, their adapters, lies in parcels,
which the order names; what it makes it leaves in the run's folder, where a run that goes on after a
kill finds it too. So no rank but the first one ever reads another's rows, and nothing that ranks
say to each other can run code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reclora.adapters import Adapter
from reclora.base import BaseModel
from reclora.configs import config_from_json, config_to_json
from reclora.distributed import (
    DistributedError,
    Request,
    Rounds,
    ShardedBase,
    recommend_here,
    rows_of_training,
)
from reclora.distributed.division import balanced
from reclora.distributed.parcels import Address, Parcels
from reclora.distributed.recommending import Shares
from reclora.distributed.shards import check_same, said_by_first
from reclora.evaluation import HeldOut, KeptLists, Lists, RankingJudge, ScorerOf
from reclora.evaluation import recommend as recommend_alone
from reclora.evaluation.lists import Progress
from reclora.interactions import Interactions
from reclora.ranking import Scorer
from reclora.scoring import RemoteScorer
from reclora.training import TrainingConfig, TrainingError

from .ranks import num_ranks, together
from .run import FROM_SCRATCH, RunSettings, git_commit, versions
from .settings import SettingsError
from .workshop import Recipe, Workshop, chunks_of

Order = dict[str, Any]
SENT = "sent"
"""Where parcels lie, in a folder of the run that is removed when it is complete."""


def check_ranks(settings: RunSettings) -> None:
    """Refuse on many ranks what takes the whole base in one process (SettingsError)."""
    asked = {
        'compared = ["from scratch"]': FROM_SCRATCH in settings.compared,
        "labelled": bool(settings.labelled),
        "evaluation.retrieve": bool(settings.evaluation.retrieve),
    }
    whole = [name for name, is_asked in asked.items() if is_asked]
    if num_ranks() > 1 and whole:
        raise SettingsError(
            f"{' and '.join(whole)}: that needs the whole base in one process, and here are "
            f"{num_ranks()} ranks, each with a part of it: leave it out, or start one process"
        )


def help_first(settings: RunSettings) -> None:
    """Carry out the orders of the first rank, until it needs no help any more.

    Raises:
        SettingsError: the run is not one for several ranks.
        DistributedError: the first rank has ended, or has said nothing for `deadline_minutes`.
        Exception: what an order comes to; then torchrun ends the other ranks.
    """
    check_ranks(settings)
    with together(settings.deadline_minutes):
        crew = Crew(settings)
        while crew.heard():
            pass


class Crew:
    """The ranks of a run, each with its share of the base."""

    def __init__(self, settings: RunSettings) -> None:
        self._folder = settings.base.saved or settings.base_folder
        self._threads = settings.threads
        self._shards: ShardedBase | None = None
        self._sent: dict[Path, Parcels] = {}

    def heard(self) -> bool:
        """Wait for an order, and carry it out; whether another one will come."""
        order = _told()
        self._carry_out(order)
        return bool(order["do"] != "leave")

    # What the first rank asks for.

    def open(self) -> BaseModel:
        """The base, its tables on all ranks: none of their rows is here."""
        self._order({"do": "open", "threads": self._threads})
        return self.shards.without_rows

    def grow(self, base: BaseModel, folder: Path) -> None:
        """Let all ranks know the identifiers by which the base has grown.

        Args:
            folder: of the run, or in it.
        """
        own = self.shards.without_rows
        if (base.users, base.items) != (own.users, own.items):
            ids = self._parcels(folder).put_ids(base)
            _told({"do": "grow", "folder": str(folder), "ids": ids})
            # Not from the parcel: here they are.
            self._shards = self.shards.grown(base.users, base.items)

    def train(
        self,
        workshop: Workshop,
        name: str,
        recipe: Recipe,
        log: Interactions,
        taken: Interactions | None,
        held_out: HeldOut,
        config: TrainingConfig,
    ) -> None:
        """Train the segments of a log, each chunk of them on one rank; then the checkpoints of all
        are in the workshop's folder, also of those of which nothing is left.

        Raises:
            DistributedError: ranks do not see each other's checkpoints.
        """
        assert workshop.folder is not None, "ranks find each other's work in the run's folder"
        parcels = self._parcels(workshop.folder)
        chunks = chunks_of(log, workshop.chunk_rows)
        sizes = np.diff(log.offsets)
        held = {segment.name: segment for segment in held_out.segments}

        def task(codes: tuple[int, ...], begun: Mapping[str, Address]) -> Order:
            part = log.part(codes)
            users = [held[segment] for segment in part.segment_names if segment in held]
            return {
                "codes": codes,
                "log": parcels.put_log(part),
                "taken": None if taken is None else parcels.put_log(taken.part(codes)),
                "users": parcels.put_users(replace(held_out, segments=tuple(users))),
                "configs": [config_to_json(config) for config in recipe.configs_of(codes)],
                "start": [begun[name] for name in part.segment_names if name in begun],
            }

        def share(own: Sequence[int]) -> list[Order]:
            names = [log.segment_names[code] for at in own for code in chunks[at]]
            start = {name: recipe.start[name] for name in names if name in recipe.start}
            begun = dict(zip(start, parcels.put_adapters([*start.values()]), strict=True))
            return [task(chunks[at], begun) for at in own]

        rows = [int(sizes[list(codes)].sum()) for codes in chunks]
        shares = balanced(rows, self.shards.num_ranks)
        self._order(
            {
                "do": "train",
                "folder": str(workshop.folder),
                "chunk_rows": workshop.chunk_rows,
                "name": name,
                "config": asdict(config),
                "seed": recipe.seed,
                "parent": [] if recipe.parent is None else parcels.put_adapters([recipe.parent]),
                "shares": [share(own) for own in shares],
            }
        )
        workshop.check_trained(name, chunks)

    def recommend(self, held_out: HeldOut, scorer_of: ScorerOf, kept: KeptLists) -> Lists:
        """The lists of every user with something relevant, those of one process: each rank makes
        those of its own users.

        Args:
            scorer_of: of a bank or base whose tables lie on the ranks.
            kept: lists that are there are not made again.

        Raises:
            DistributedError: ranks do not see each other's lists.
        """
        k, shares = max(held_out.config.ks), Shares.of(held_out, self.shards.num_ranks)
        parcels, adapters = self._parcels(kept.folder), Parcels(kept.folder / SENT / kept.of)
        scorers = lru_cache(maxsize=1)(scorer_of)

        def share(rank: int) -> list[Order]:
            tasks = shares.missing(rank, kept, k)
            asked = [_adapter_of(scorers(piece.name)) for piece in shares.pieces_of(tasks)]
            their = iter(adapters.put_adapters([each for each in asked if each is not None]))
            where = iter([None if each is None else next(their) for each in asked])
            users = [replace(held_out, segments=tuple(shares.pieces_of([t]))) for t in tasks]
            return [
                {
                    "task": task,
                    "users": parcels.put_users(its),
                    "adapters": [next(where) for _ in task],
                }
                for task, its in zip(tasks, users, strict=True)
            ]

        self._order(
            {
                "do": "rank",
                "folder": str(kept.folder),
                "of": kept.of,
                "k": k,
                "shares": [share(rank) for rank in range(self.shards.num_ranks)],
            }
        )
        # As large as all that was trained, and needed once.
        shutil.rmtree(kept.folder / SENT / kept.of, ignore_errors=True)
        return shares.lists(kept, k)

    def leave(self) -> None:
        """Let the others go: what is left to do the first rank does alone."""
        _told({"do": "leave"})

    def _parcels(self, folder: Path) -> Parcels:
        """Those that this rank has put there, and knows to be whole."""
        return self._sent.setdefault(folder, Parcels(folder / SENT))

    def _order(self, order: Order) -> None:
        self._carry_out(_told(order))

    # What every rank does.

    @property
    def shards(self) -> ShardedBase:
        assert self._shards is not None, "the first order is to open the base"
        return self._shards

    def _carry_out(self, order: Order) -> None:
        match order["do"]:
            case "open":
                torch.set_num_threads(order["threads"])
                check_same("versions", f"{versions()}, commit {git_commit()}")
                self._shards = ShardedBase.load(self._folder)
            case "grow":
                parcels = Parcels(Path(order["folder"]) / SENT)
                ids = parcels.ids(order["ids"], self.shards.without_rows)
                self._shards = self.shards.grown(*ids)
            case "train":
                self._train(order)
            case "rank":
                self._rank(order)

    def _train(self, order: Order) -> None:
        workshop = Workshop(Path(order["folder"]), order["chunk_rows"])
        parcels = Parcels(Path(order["folder"]) / SENT)
        name, config, base = order["name"], TrainingConfig(**order["config"]), self.shards
        parent = next((parcels.parent(address) for address in order["parent"]), None)
        rounds = Rounds(base)
        for task in order["shares"][base.rank]:
            codes = tuple(task["codes"])
            log = parcels.log(task["log"], base.without_rows)
            if workshop.has_trained(name, config, codes, log):
                continue
            taken = task["taken"] and parcels.log(task["taken"], base.without_rows)
            held_out = parcels.users(task["users"], base.without_rows)
            configs = dict(zip(codes, map(config_from_json, task["configs"]), strict=True))
            start = {a.segment: a for a in map(parcels.adapter, task["start"])}
            recipe = Recipe(configs, order["seed"], parent, start)
            part = rounds.part(*rows_of_training(log, None, config, recipe.seed))
            judge = RankingJudge(held_out, partial(recommend_here, rounds))
            # What has failed tells why where all are taken up.
            with suppress(TrainingError):
                workshop.fit(name, codes, recipe, part, log, config, judge, recipe.seed, taken)
        rounds.stand_by()

    def _rank(self, order: Order) -> None:
        kept = KeptLists(Path(order["folder"]), order["of"])
        parcels, rounds = Parcels(kept.folder / SENT), Rounds(self.shards)
        adapters = Parcels(kept.folder / SENT / kept.of)
        tasks = order["shares"][self.shards.rank]
        requests = [
            Request.of(piece, None if address is None else adapters.adapter(address))
            for task in tasks
            for piece, address in zip(
                parcels.users(task["users"], self.shards.without_rows).segments,
                task["adapters"],
                strict=True,
            )
        ]
        made = iter(rounds.lists(requests, order["k"]))
        for task in tasks:
            lists = [next(made).item_rows_UK for _ in task["task"]]
            kept.write(tuple(task["task"]), torch.cat(lists))
        rounds.stand_by()


def _told(order: Order | None = None) -> Order:
    """The order of the first rank, on every rank.

    Raises:
        DistributedError: a rank has ended, or has not been heard of for as long as ranks wait.
    """
    try:
        told: Order = json.loads(said_by_first("" if order is None else json.dumps(order)))
    except RuntimeError as error:
        who = "the first rank" if order is None else "another rank"
        raise DistributedError(f"{who} has ended, or is not heard of: {error}") from error
    return told


def _adapter_of(scorer: Scorer) -> Adapter | None:
    """Whose tables lie on the ranks; None of the base alone."""
    assert isinstance(scorer, RemoteScorer), "what is whole here is ranked here"
    assert scorer.adapter is None or isinstance(scorer.adapter, Adapter)
    return scorer.adapter


def recommend(
    held_out: HeldOut,
    scorer_of: ScorerOf,
    *,
    model: str,
    workers: int,
    crew: Crew | None,
    kept: KeptLists | None,
    progress: Progress | None = None,
) -> dict[str, Lists]:
    """`reclora.evaluation.recommend`, by this process's workers or by all ranks, where the model's
    tables lie on them.
    """
    asked = next((segment.name for segment in held_out.segments if segment.num_users), None)
    if crew is None or asked is None or not isinstance(scorer_of(asked), RemoteScorer):
        return recommend_alone(
            held_out, scorer_of, model=model, progress=progress, processes=workers, kept=kept
        )
    assert kept is not None, "ranks find each other's lists in the run's folder"
    return {"": crew.recommend(held_out, scorer_of, kept)}
