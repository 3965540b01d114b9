"""Make the base model: train it on the log's first window, or import tables made elsewhere.

It is made once, and what decides it stands beside it, so that a folder never gets another base.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from reclora.base import BaseModel, read_provenance
from reclora.files import sha256_of
from reclora.interchange import import_base
from reclora.splits import WINDOWS, Windows

from .base_settings import BaseSettings
from .prepare import declined_of, windows_of
from .run import RunSettings, contents, digest, window_file
from .settings import SettingsError, resolved
from .train_base import train_base


def pretrain(settings: RunSettings, inputs: Mapping[str, str]) -> BaseModel:
    """The run's base model: the one that the settings name, else from `settings.base_folder`.

    There it is made and saved if it is not yet.

    Args:
        inputs: file -> sha256 of the log, from `prepare`. Of given windows the first one's alone
            decide: the base stays when the others move on.

    Raises:
        SettingsError: the folder holds a base that other settings, tables or another log made; or
            a file to import is not there.
        ValueError: nobody has anything new in the last tenth of the window.
        BaseError: tables to import that are no base model.
    """
    torch.set_num_threads(settings.threads)
    if settings.base.saved is not None:
        return BaseModel.load(settings.base.saved)
    inputs = _of_first_window(settings, inputs)
    made_from = _made_from(settings, inputs)
    folder = settings.base_folder
    if folder.exists():
        base, about = BaseModel.load(folder), read_provenance(folder)
        is_kept = settings.base.keep and about.get("settings_made_from") == _settings_of(settings)
        if about.get("made_from") != made_from and not is_kept:
            raise SettingsError(
                f"{folder} holds a base model that {_makers(settings.base)} made, and adapters in "
                f"the store belong to it. Where the log alone has grown, base.keep = true goes on "
                f"with it; to adapt it whatever made it, set base.saved = '{folder}'; for a new "
                f"base, name another `folder`, or remove {folder} and {settings.store_folder}"
            )
        return base
    if settings.base.import_users is not None and settings.base.import_items is not None:
        base = import_base(
            settings.base.import_users, settings.base.import_items, settings.base.import_tables
        )
        base.save(folder, {"made_from": made_from, "by": "import"})
    else:
        window = windows_of(settings).pretrain
        declined = declined_of(settings, window.users, window.items, WINDOWS[:1])
        made = train_base(window, settings.base, settings.split.by, declined=declined)
        about = {"made_from": made_from, "by": "pretrain", "epochs": made.epochs, "inputs": inputs}
        about["last_moment"] = int(window.timestamps.max())
        about |= {"tower_epochs": made.tower_epochs, "tried": made.tried.to_dict("records")}
        about |= {"seconds": made.seconds, "settings_made_from": _settings_of(settings)}
        made.base.save(folder, about | {"settings": resolved(made.chosen)})
    return BaseModel.load(folder)


def check_earlier(settings: RunSettings, whole: Windows) -> None:
    """Refuse a base model of another log that was trained on what this run trains, chooses or tests
    on.

    Raises:
        SettingsError: reclora pretrained it on rows from the train window's first moment on, or
            the cuts are each user's own, so that no moment tells.
    """
    if settings.base.saved is None and not settings.base.keep:
        return
    folder = settings.base.saved or settings.base_folder
    last = read_provenance(folder).get("last_moment")
    first = int(whole.train.timestamps.min())
    if last is None:
        return
    if settings.split.by != "global_time":
        raise SettingsError(
            f"{folder} was pretrained by reclora, and with split.by = "
            f"{settings.split.by!r} its rows cannot be told from this run's: use 'global_time', or "
            "pretrain anew"
        )
    if last >= first:
        until, begin = (np.datetime64(moment, "us") for moment in (last, first))
        raise SettingsError(
            f"{folder} was trained on rows up to {until}, but the train window begins "
            f"at {begin}: give a larger split.pretrain, or pretrain anew"
        )


def _of_first_window(settings: RunSettings, inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs that the base is trained on; where one log is cut, all of it decides the cut."""
    first = "" if settings.log.windows is None else window_file(WINDOWS[0], "")
    return {name: sha256 for name, sha256 in inputs.items() if name.startswith(first)}


def _made_from(settings: RunSettings, inputs: Mapping[str, str]) -> str:
    """A digest of what decides the base: an imported one comes from its tables, not from the log.

    Raises:
        SettingsError: a file to import is not there.
    """
    base = settings.base
    imported = [path for path in (base.import_users, base.import_items, base.import_tables) if path]
    if not imported:
        return digest(*_deciding(settings), contents(settings.log, inputs))
    missing = [str(path) for path in imported if not path.is_file()]
    if missing:
        raise SettingsError(f"no file to import the base model from: {', '.join(missing)}")
    return digest("import", [sha256_of(path) for path in imported])


def _deciding(settings: RunSettings) -> tuple[object, ...]:
    """The settings that decide a pretrained base."""
    base, contract = resolved(settings.base), resolved(settings.log.contract)
    del base["keep"]
    if settings.log.contract.declined == "drop":
        # A base stays that of its settings from before there were others.
        del contract["declined"]
    return base, resolved(settings.split), contract


def _settings_of(settings: RunSettings) -> str:
    """A digest of them, whatever the log."""
    return digest(*_deciding(settings))


def _makers(base: BaseSettings) -> str:
    if base.import_users is not None:
        return "other tables"
    return "another log or other [base], [split] or [log.contract] settings"
