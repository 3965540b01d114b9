"""This file is the door: a log in, a base model out."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from reclora.base import BaseModel
from reclora.counted import segment_seed
from reclora.factorisation.config import FactorisationConfig
from reclora.factorisation.course import Course, Epoch, Factorisation, Judge, Progress
from reclora.factorisation.descent import descend
from reclora.factorisation.ials import alternate
from reclora.factorisation.positives import Positives
from reclora.interactions import Interactions


def factorise(
    log: Interactions,
    config: FactorisationConfig,
    *,
    seed: int,
    declined: Interactions | None = None,
    judge: Judge | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> Factorisation:
    """Factorise a log into a base model: a user table, an item table and an item bias.

        score(user, item) = cos(u, v) / temperature + b_i        or, by `similarity`, u . v + b_i

    The base model holds the unit rows, the users' over temperature, and so is the plain u . v + b.
    Segments are ignored; a (user, item) that is there more than once is one positive, of its
    largest weight. A user's own items are never among the user's negatives. A user without rows
    gets the mean of the others' rows, as one that a base model grows by does.

    With `declined`, rows that were shown and not taken, `bce` is that of a labelled log: over the
    rows of both, y = 1 and y = 0, it minimises (c is `negative_weight`)

        mean w_ui ( -y log sigmoid(s_ui) - c (1 - y) log(1 - sigmoid(s_ui)) )

    and other negatives beside them, unless `num_negatives` is 0. A pair in both logs was taken.
    Declined rows of a user without a row in `log` are left out: that user has nothing to train by.

    Memory: both tables four times (numbers, gradient, two moments of Adam), and per step the scores
    of `batch_users` users for N items, or for J. The same log, config and seed give the same bytes,
    on one thread.

    Args:
        seed: of the tables' start, the order of users and the negatives.
        declined: on the id maps of `log`, its weights in the same measure; for `bce` alone.
        judge: asked after every `judge_every` epochs and after the last; the base model of the best
            of these epochs comes back, and `patience` judgements without a better one end it.
        epochs: stop after so many; the learning rates fall as over all of `config.epochs`.
        progress: told (epochs done, epochs at most) after every epoch.

    Raises:
        ValueError: the log has no row or no weight, `epochs` is not in 1 to `config.epochs`, or the
            judge said NaN. Or there are declined rows with a loss other than `bce` or on other id
            maps; or `num_negatives` is 0 and no declined row counts.
        FactorisationError: the loss or a table is not finite; says in which epoch.
    """
    last_epoch = config.epochs if epochs is None else epochs
    if not 1 <= last_epoch <= config.epochs:
        raise ValueError(f"epochs must be from 1 to the config's {config.epochs}, got {epochs}")
    positives = Positives.of(log)
    no = None if declined is None else _declined(declined, log, positives, config)
    if config.num_negatives == 0 and (no is None or len(no.others) == 0):
        raise ValueError(
            "num_negatives = 0 leaves the declined rows as the only negatives, and "
            f"{'none were given' if declined is None else f'none of {declined!r} counts'}: give "
            "num_negatives, or leave it out for every item; or keep the log's declined rows "
            "(log.contract: min_label, declined = 'keep')"
        )
    stream = np.array([segment_seed(seed, "factorisation")], np.uint64)
    steps = alternate if config.loss == "ials" else partial(descend, declined=no)

    def base_of(epoch: Epoch) -> BaseModel:
        user_ND, item_ND, bias_N = epoch.tables()
        has_rows = torch.from_numpy(np.diff(positives.offsets) > 0)
        user_ND[~has_rows] = user_ND[has_rows].mean(0)
        return BaseModel.of(log.users, log.items, user_ND, item_ND, bias_N)

    course = Course(config, last_epoch, base_of, judge)
    return course.run(steps(positives, config, stream), progress)


def _declined(
    declined: Interactions, log: Interactions, positives: Positives, config: FactorisationConfig
) -> Positives:
    if config.loss != "bce":
        raise ValueError(
            f"declined rows are negatives of loss = 'bce' alone, got {config.loss!r}: take 'bce', "
            "or leave the declined rows out (log.contract: declined = 'drop')"
        )
    if (declined.users, declined.items) != (log.users, log.items):
        raise ValueError(f"declined {declined!r} must be on the id maps of {log!r}; see onto")
    return positives.declined(declined)
