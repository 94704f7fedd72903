"""Watches the health of a model while any loop trains it: rows and facts in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import nn

from asymlora.diagnostics.health import MIN_STEPS, Row, Verdict, judge
from asymlora.diagnostics.model_checks import (
    Bits,
    chosen_heads,
    frozen_bits,
    head_bits,
    judge_frozen,
    judge_parameters,
    judge_still_heads,
    judge_targets,
    judge_uncalled,
    judge_untrained_heads,
    sites_of,
    task_heads,
)
from asymlora.errors import AttachError
from asymlora.peft_sites import FACTORS, lora_layers, plain_layers
from asymlora.site_view import Site, find_attached

_EARLY = 3
_START, _RECENT = 3, 60


class HealthMonitor:
    """Judges a model by the rows of `FeatureDynamics` and by what can be seen on the model itself.

    Build it before the training: what is frozen then must stay so.

    Args:
        model: An attached model, a PEFT model, or one without adapters, of which heads and numbers are looked at.
        adapter: Name of a PEFT model's adapter; default: its active one.
        heads: Paths of the modules that must train in full; default: what `task_heads` finds. ``()`` for a model whose
            head is frozen on purpose.

    Example:
        >>> import asymlora as al
        >>> model = al.attach(nn.Sequential(nn.Linear(8, 8)), al.AdapterSpec.b_only(rank=2, targets="0"))
        >>> HealthMonitor(model).verdicts()
        ()
    """

    def __init__(self, model: nn.Module, *, adapter: str | None = None, heads: Sequence[str] | None = None) -> None:
        self.model = model
        self.adapter = adapter
        self._steps: list[list[Row]] = []
        self.has_sites = _has_sites(model, adapter)
        self._heads = task_heads(model) if heads is None else chosen_heads(model, heads)
        own = self._sites()
        self._names = [site.name for site in own]
        self._eps = {(s.name, f): torch.finfo(getattr(s, f).dtype).eps for s in own for f in FACTORS}
        self._frozen: Bits = frozen_bits(own)
        self._untrained = (*judge_targets(model, adapter), *judge_untrained_heads(self._heads))
        self._still: dict[str, tuple[str, ...]] = {}
        self._looks: list[int] = []
        self._facts: dict[tuple[str, object, str], Verdict] = {}
        self._told: set[tuple[str, object]] = set()
        self.begin()

    def begin(self) -> None:
        """Take the bits of now as those to compare with: after a checkpoint or a fitted head was loaded."""
        # What was frozen stays the list of the start: a factor that loading has thawed is one of the things to tell.
        now = frozen_bits(self._sites())
        self._frozen = {key: now.get(key, bits) for key, bits in self._frozen.items()}
        self._still = {path: bits for path, bits in head_bits(self._heads).items() if bits}

    def observe(self, rows: Iterable[Row], step: int | None = None) -> tuple[Verdict, ...]:
        """Take the rows of one measured step, and look at the model.

        Args:
            rows: What `FeatureDynamics` gives to its ``observe``; none of a model without sites.
            step: Number of the optimizer step; default: that of the rows, 0 without rows.

        Returns:
            The verdicts that were not told before.
        """
        self.take(rows, step)
        # Of a long run the start and the newest steps, so that the hundredth look costs what the first did.
        recent = self._steps if len(self._steps) <= _START + _RECENT else self._steps[:_START] + self._steps[-_RECENT:]
        found = (*self._untrained, *self._facts.values(), *self._judged(recent, goes_on=True))
        fresh = [v for v in found if (v.name, v.factor) not in self._told]
        self._told |= {(v.name, v.factor) for v in fresh}
        return tuple(fresh)

    def take(self, rows: Iterable[Row], step: int | None = None) -> None:
        """Do what `observe` does, without a judgement of the rows: `verdicts` judges all of them at the end.

        Args:
            rows: As there.
            step: As there.
        """
        new = list(rows)
        if new:
            self._steps.append(new)
        now = new[0]["step"] if step is None and new else step or 0
        self._look(now, {row["site"] for row in new})

    def recall(self, rows: Iterable[Row]) -> None:
        """Take the rows of the steps before a run was interrupted; the model is not looked at.

        Args:
            rows: Those rows, in the order of the steps.
        """
        self._steps += [list(of_one) for _, of_one in groupby(rows, key=lambda row: row["step"])]

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return every verdict, on the model first."""
        return (*self._untrained, *self._facts.values(), *self._judged(self._steps))

    @property
    def watched(self) -> tuple[int, int]:
        """Sites and measured steps that rows tell of."""
        return len({row["site"] for rows in self._steps for row in rows}), len(self._steps)

    def _judged(self, steps: Sequence[Sequence[Row]], *, goes_on: bool = False) -> tuple[Verdict, ...]:
        return judge((row for rows in steps for row in rows), eps=self._eps, goes_on=goes_on)

    def _sites(self) -> list[Site]:
        return sites_of(self.model, self.adapter) if self.has_sites else []

    def _look(self, step: int, called: set[str]) -> None:
        found = list(judge_frozen(self._frozen, self._sites(), step=step))
        if called:
            found += judge_uncalled(self._names, called)
        if step > 0:
            found += self._look_at_heads(step)
            found += () if self.has_sites else judge_parameters(self.model, step=step)
        for verdict in found:
            # The first time counts; the sentence tells thawed from changed.
            self._facts.setdefault((verdict.name, verdict.factor, str(verdict.value)), verdict)

    def _look_at_heads(self, step: int) -> tuple[Verdict, ...]:
        self._looks.append(step)
        now = head_bits({path: self._heads[path] for path in self._still})
        self._still = {path: bits for path, bits in self._still.items() if now[path] == bits}
        long_enough = len(self._looks) >= MIN_STEPS and step > _EARLY
        return judge_still_heads(list(self._still), step=step) if long_enough else ()


def _has_sites(model: nn.Module, adapter: str | None) -> bool:
    if find_attached(model) is not None:
        return True
    if not lora_layers(model):
        return False
    try:
        plain_layers(model, adapter)
    except AttachError:  # PEFT's AdaLoRA, DoRA: their product is another
        return False
    return True
