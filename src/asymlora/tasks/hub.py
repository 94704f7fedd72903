"""The Hugging Face hub: whether it can be reached, told within about a second, and what is here without it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asymlora.errors import DataError, DataNotFoundError
from asymlora.tasks.data_files import label_names
from asymlora.tasks.tables import PART_NAMES, Rows

PATIENCE_S = 1.0
"""Seconds that the hub has to answer."""
UNTOLD = ""
"""Stands for a revision that the caller does not tell."""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of an id on the hub, with or without an owner."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name))


def is_reachable() -> bool:
    """Whether the hub takes a connection; False where the environment forbids the network (``HF_HUB_OFFLINE``).

    The hub is the one of ``HF_ENDPOINT``. Behind a proxy nothing is tried: the proxy's own errors come soon enough.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    endpoint = urlsplit(constants.ENDPOINT)
    host, proxies = endpoint.hostname or "", urllib.request.getproxies()
    if (endpoint.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return True
    return _answers(host, endpoint.port or (80 if endpoint.scheme == "http" else 443))


def _answers(host: str, port: int) -> bool:
    # In a thread that is left behind: looking up a name has no time limit of its own.
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=PATIENCE_S):
            answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return answered.is_set()


def find_hub_model(name: str, *, revision: str | None = UNTOLD) -> tuple[str, Path | None]:
    """Return what transformers loads for a hub id: the id, or without a network the folder of an earlier download.

    Args:
        name: The id.
        revision: Branch, tag or commit; None is the hub's default. `UNTOLD` leaves an earlier download to the hub's
            client, which knows the revision, but which tries the network for some twenty seconds before.

    Returns:
        The id and None, or the folder twice.

    Raises:
        DataNotFoundError: The hub cannot be reached and nothing of the model was downloaded before.
    """
    if is_reachable():
        return name, None
    from huggingface_hub import constants, try_to_load_from_cache

    if revision == UNTOLD or constants.is_offline_mode():
        # Told to be offline, the client looks nowhere but in its cache.
        if _kept_configurations(name):
            return name, None
    # Not what transformers calls complete, but without its configuration nothing of a model is of use.
    elif isinstance(kept := try_to_load_from_cache(name, "config.json", revision=revision), str):
        folder = Path(kept).parent
        return str(folder), folder
    raise DataNotFoundError(_out_of_reach(name, "model", "a folder that transformers saved, or embedded:minilm-l6"))


def _kept_configurations(name: str) -> list[Path]:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    return list(folder.glob("snapshots/*/config.json"))


def read_hub(name: str, subset: str | None) -> tuple[dict[str, Rows], dict[str, tuple[str, ...]]]:
    """Read a data set of the hub.

    Args:
        name: The id.
        subset: Its configuration, if it has several.

    Returns:
        Rows by part, other splits left out; and of columns of labels their names in order, by column.

    Raises:
        DataNotFoundError: The hub cannot be reached and holds the only copy, or it does not give the data set.
        DataError: The data set has no training split.
    """
    splits = _splits(name, subset)
    parts: dict[str, Rows] = {}
    orders: dict[str, tuple[str, ...]] = {}
    for part, names in PART_NAMES.items():
        split = next((splits[n] for n in names if n in splits), None)
        if split is not None:
            parts[part] = _columns(split)
            orders |= {column: tuple(known) for column, feature in split.features.items() if (known := _names(feature))}
    if "train" not in parts:
        raise DataError(f"{name} has no split called train; it has {', '.join(map(str, splits))}.")
    return parts, orders


def _splits(name: str, subset: str | None) -> Any:
    if not is_reachable():
        return _kept_splits(name, subset)
    import datasets

    try:
        return datasets.load_dataset(name, subset)
    except Exception as error:
        # The hub's client raises a dozen classes for a wrong name, no network or no permission.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataNotFoundError(
            f"The data set {name!r} could not be loaded from the hub ({reason}). Check the name and the network, or"
            " give a local file."
        ) from error


def _kept_splits(name: str, subset: str | None) -> Any:
    unreachable = _out_of_reach(name, "data set", "a file (CSV, JSON Lines, Parquet), a folder, or embedded:reviews")
    if not _may_be_kept(name):
        raise DataNotFoundError(unreachable)
    # `load_dataset` would try the network again and again before it looks at its own cache.
    from datasets.packaged_modules.cache.cache import Cache

    try:
        kept = Cache(repo_id=name, dataset_name=name.split("/")[-1], config_name=subset, version="auto", hash="auto")
        return kept.as_dataset()
    except ValueError:
        raise DataNotFoundError(unreachable) from None


def _may_be_kept(name: str) -> bool:
    # A look at the folder, so that importing `datasets` (a second or two) does not delay an answer that is plain.
    from huggingface_hub import constants

    kept = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")).expanduser()
    owner, slash, _ = name.partition("/")
    return any(kept.glob(f"{owner}___*" if slash else "*"))


def _out_of_reach(name: str, what: str, instead: str) -> str:
    from huggingface_hub import constants

    # The host is the user's own setting or the client's default: the client's documents tell it.
    cause = "HF_HUB_OFFLINE forbids it" if constants.is_offline_mode() else f"no answer within {PATIENCE_S:g} s"
    return (
        f"There is no folder or file called {name!r} here, and the {what} of this id cannot be fetched: the Hugging"
        f" Face hub cannot be reached ({cause}), and it was not downloaded before. Check the name and the network, or"
        f" give {instead}."
    )


def _columns(split: Any) -> Rows:
    import datasets

    for column, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
    rows = {column: list(split[column]) for column in split.column_names}
    for column, feature in split.features.items():
        if names := _names(feature):
            rows[column] = label_names(rows[column], names)
        elif isinstance(feature, datasets.Image):
            rows[column] = [image and (image["bytes"] or image["path"]) for image in rows[column]]
    return rows


def _names(feature: Any) -> list[str] | None:
    return getattr(feature, "names", None)
