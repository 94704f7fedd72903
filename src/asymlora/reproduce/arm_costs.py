"""What the arms of a sweep train and cost, from configurations alone: no weights are read. No torch at import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asymlora.reproduce.artefact import SweepPart
from asymlora.reproduce.forecasting import runs_of_cell
from asymlora.reproduce.printed_count import Agreement, PrintedCount
from asymlora.sweep.grid import Cell
from asymlora.sweep.matching import RANKED, ModelCosts, matched, row_length
from asymlora.train.recipe import Recipe

if TYPE_CHECKING:
    from asymlora.theory.model_shapes import ModelShape

ENOUGH = 2**62
"""Stands for a memory in which every step fits: nothing is proposed to make it smaller."""


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What one arm of a sweep trains and costs.

    Attributes:
        part: Name of the part.
        arm: Label of the cell.
        rank: Rank of its adapter.
        values: Trained values of the factors, or of the whole model; the head left out. None where the method has no
            rank that sets them.
        printed: What the paper prints for them; None where nothing is known.
        runs: Runs before the grid has grown.
        steps: Optimizer steps of a run.
        flops: Floating-point operations of all these runs; None where the model's blocks are not known.
        file_bytes: Size of the adapter's file, the head left out.
        peak_bytes: Most bytes of tensors that are live at once in a step; None where that is not known.
    """

    part: str
    arm: str
    rank: int
    values: int | None
    printed: PrintedCount | None
    runs: int
    steps: int
    flops: float | None
    file_bytes: int | None
    peak_bytes: int | None

    @property
    def agreement(self) -> Agreement | None:
        """Whether as many values are trained as the paper prints; None where one of them is not known."""
        return None if self.printed is None or self.values is None else self.printed.agreement(self.values)


class ArmCosts:
    """Answers for the arms of sweeps; the shapes of each model are built once.

    Args:
        device: Type of the device that the peak of a step is told for.
    """

    def __init__(self, *, device: str = "cuda") -> None:
        self._device = device
        self._costs = ModelCosts()
        self._models: dict[tuple[str, str | None], Any] = {}

    def of(self, part: SweepPart) -> list[ArmCost]:
        """Return the costs of a sweep's arms, in the plan's order, at the ranks and steps of equal budgets.

        Args:
            part: The sweep.
        """
        found = matched(part.plan, factor_values=self._costs.factor_values, flops=self._costs.flops)
        return [self._of_cell(part, cell) for cell in found]

    def _of_cell(self, part: SweepPart, cell: Cell) -> ArmCost:
        recipe, runs = cell.recipe, runs_of_cell(part.plan)
        flops = self._costs.flops(recipe)
        return ArmCost(
            part=part.name,
            arm=cell.label,
            rank=recipe.adapter.rank,
            values=self._values(recipe),
            printed=part.printed.get(cell.label, part.printed.get(cell.arm)),
            runs=runs,
            steps=recipe.train.steps,
            flops=None if flops is None else flops * recipe.train.steps * runs,
            file_bytes=self._file_bytes(recipe),
            peak_bytes=self._peak_bytes(recipe),
        )

    def _values(self, recipe: Recipe) -> int | None:
        if recipe.method in RANKED:
            return self._costs.factor_values(recipe)
        return self._costs.base_values(recipe) if recipe.method == "full" else None

    def _file_bytes(self, recipe: Recipe) -> int | None:
        if recipe.method != "adapter":
            return None
        from asymlora.theory.file_size import adapter_file_bytes
        from asymlora.theory.model_shapes import read_model

        shape: ModelShape = read_model(self._model(recipe), recipe.adapter)
        return adapter_file_bytes(shape.adapted)

    def _peak_bytes(self, recipe: Recipe) -> int | None:
        if recipe.method != "adapter":
            return None
        from asymlora.tasks.empty_models import fresh_heads
        from asymlora.train.memory_check import Planned, memory_line

        model, train = self._model(recipe), recipe.train
        heads = fresh_heads(model) if "classification" in recipe.task or "regression" in recipe.task else ()
        in_full = tuple(dict.fromkeys((*recipe.adapter.modules_to_save, *heads)))
        planned = Planned(
            batch=train.batch_size,
            length=row_length(model, recipe),
            optimizer=train.optimizer,
            momentum=bool(train.optimizer_options.get("momentum")),
            checkpointing=train.gradient_checkpointing,
            base=recipe.model.base,
            device=self._device,
        )
        spec = replace(recipe.adapter, modules_to_save=in_full)
        peak = memory_line(model, spec, planned, available=ENOUGH).peak
        return None if peak is None else peak.total

    def _model(self, recipe: Recipe) -> Any:
        from asymlora.tasks.empty_models import empty_model

        key = recipe.model.config or recipe.model.name, recipe.model.revision
        if key not in self._models:
            self._models[key] = empty_model(key[0], revision=key[1])
        return self._models[key]
