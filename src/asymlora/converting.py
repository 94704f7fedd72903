"""Turn an adapter folder of one form into the other, without a model."""

from __future__ import annotations

from pathlib import Path

from asymlora.adapter_file import CARD_FILE, AdapterFile, redrawn, write_adapter
from asymlora.adapter_reading import read_adapter
from asymlora.errors import AdapterFileError
from asymlora.factor_spec import ADDRESSED_INITS
from asymlora.own_file import OWN_FILE, Form
from asymlora.untrusted_files import open_file


def convert_adapter(source: str | Path, target: str | Path, *, to: Form | None = None) -> tuple[str, ...]:
    """Turn an adapter folder of PEFT's form into a seed-compressed one, or back; no base model is needed.

    Args:
        source: The folder.
        target: Where to write; must not exist.
        to: ``peft`` or ``seed``; None for the other form.

    Returns:
        Keys of the tensors that the seed-compressed folder draws instead of storing them.

    Raises:
        AdapterFileError: The folder cannot be read, has the wanted form already, or has nothing that can be drawn;
            or ``target`` exists.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise AdapterFileError(f"{target} exists already. Name a folder that does not.")
    file = read_adapter(source)
    form = file.own.form if file.own is not None else "peft"
    wanted: Form = to or ("seed" if form == "peft" else "peft")
    if wanted == form:
        raise AdapterFileError(f"{source} has the form {form!r} already. Copy it, or convert it --to the other form.")
    if wanted == "seed":
        _refuse_undrawn(source, file)
    card = b""
    if (source / CARD_FILE).exists():
        with open_file(source / CARD_FILE, most=2**24) as opened:
            card = opened.read()
    dropped = write_adapter(file, target, form=wanted, card=card)
    return tuple(sorted(dropped or (redrawn(file) if wanted == "peft" else ())))


def _refuse_undrawn(source: Path, file: AdapterFile) -> None:
    if file.own is None:
        why = f"it has no {OWN_FILE}, so nothing says that a factor was drawn and frozen"
    elif not file.draws:
        starts = [
            f"{letter} starts as {factor.init_name} and is {'trained' if factor.trainable else 'frozen'}"
            for letter, factor in (("A", file.spec.A), ("B", file.spec.B))
        ]
        why = (
            f"no frozen factor of it is an addressed draw ({', '.join(starts)}; addressed are"
            f" {', '.join(ADDRESSED_INITS)})"
        )
    elif not redrawn(file):
        why = "its frozen factors have other values than their addresses give"
    else:
        return
    raise AdapterFileError(f"{source} cannot be compressed to seeds: {why}. Keep it in PEFT's form.")
