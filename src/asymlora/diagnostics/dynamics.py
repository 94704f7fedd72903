r"""What the two factors do while they train: sizes of the features and of the parts of their change, step by step.

.. math:: Z_A = A x, \quad Z_B = s B A x, \quad \Delta Z_B = \delta_1 + \delta_2 + \delta_3

on inputs that are captured once, so that the split is exact whatever the optimizer and the loop are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn

from asymlora.diagnostics.factor_state import refuse_divided
from asymlora.diagnostics.optimizer_steps import OptimizerSteps
from asymlora.diagnostics.probe import ProbeBatch, capture
from asymlora.diagnostics.site_measurement import MeasuredSite, Row, SiteMeasurement
from asymlora.errors import AttachError, SpecError
from asymlora.peft_sites import plain_layers, sites
from asymlora.site_view import Site, find_attached, refuse_folded


class FeatureDynamics:
    r"""Measures what each site's factors do in the steps of any training loop, without an effect on its numbers.

    On construction the model runs once on ``probe_batch``, in eval mode, and some rows of what each site's layer reads
    are kept, with a copy of the factors. Within ``with FeatureDynamics(...):`` torch's optimizer hooks tell of each
    step; steps 1, 2, 3 and each multiple of ``every`` are measured.

    A row has, for one site and step: ``step``, ``site``, ``kind``, ``rank``, ``fan_in`` (columns of ``A``), ``outputs``
    (rows of ``B``), ``trains_A``, ``trains_B`` and ``scaling``;

    * ``rms_x``, ``rms_base``: root mean squares over the probe of the layer's input and of its base's own output, of
      the time of the capture;
    * ``Z_A``, ``Z_B``, ``delta1`` (``A`` moved), ``delta2`` (``B`` moved), ``delta3`` (both), ``delta_Z_B``: root mean
      squares over the probe, after the step; ``identity_error``: the Frobenius norm of
      :math:`\Delta Z_B - \delta_1 - \delta_2 - \delta_3` over that of ``Z_B`` (before or after, the larger);
    * ``grad_A``, ``grad_B``: Frobenius norm of the gradient that the step used (of a factor that no optimizer holds, of
      the gradient that stood there), or None where there was none;
    * ``norm_A``, ``update_A``, ``relative_update_A`` (over the norm before), ``moved_A`` (way from the start over the
      norm of the start), ``angle_A`` (to the start, radians), and the same of ``B``; None where a zero factor leaves no
      ratio;
    * ``singular_values`` of ``s*B*A``, ``effective_rank``, ``stable_rank`` (None where it is zero).

    A number that is not finite stands as NaN or infinity. Of an embedding that scales its output ``Z_B`` and the parts
    have that scale, and ``scaling`` and the singular values do not. A frozen factor (a buffer, or without
    ``requires_grad``) is not copied before steps and has an update of 0; ``moved`` tells if it changed all the same.

    Where one optimizer holds the ``A`` and another the ``B``, their two calls count as one step.

    Args:
        model: An attached model, a `PeftModel` or any model with PEFT's LoRA layers in it, or a wrapper around one.
        probe_batch: What the model is called with: ``model(**mapping)``, ``model(*tuple)`` or ``model(tensor)``. It is
            not kept.
        every: Steps from one measurement to the next, at least 1.
        max_rows: Most rows (tokens, positions, ids) of a site's input that are kept.
        adapter: Name of the adapter, of a PEFT model; default: its active one.
        observe: Called with the new rows right after each measured step. What it raises ends the step.

    Attributes:
        records: All rows so far: one a site and measured step, about 2 kB each. In a very long
            loop take a larger ``every``.
        uncalled: Sites whose layer the model did not call on the probe; they have no rows.
        called_again: Sites whose layer was called more than once; the first call's input is kept.

    Raises:
        SpecError: ``every`` or ``max_rows`` is below 1, or ``probe_batch`` is nothing that a model is called with.
        EmptyDataError: The batch has no row, or its mask counts none.
        DataError: The model cannot be called with the batch.
        NotAttachedError: The model carries no adapter.
        UnknownNameError: There is no such adapter, or not exactly one is active.
        AttachError: A layer is not plain LoRA or is merged, factors are divided over processes, or the model calls none
            of the adapted layers.

    Example:
        >>> import torch, asymlora as al
        >>> model = al.attach(nn.Sequential(nn.Linear(6, 4)), al.AdapterSpec.lora(rank=2))
        >>> optimizer, x = torch.optim.SGD(al.param_groups(model, lr=0.1)), torch.ones(3, 6)
        >>> with FeatureDynamics(model, x) as dynamics:
        ...     for _ in range(4):
        ...         model(x).square().sum().backward()
        ...         optimizer.step()
        >>> first = dynamics.records[0]
        >>> first["delta1"], first["delta2"] > 0, [row["step"] for row in dynamics.records]
        (0.0, True, [1, 2, 3])

    Source:
        Hayou, Ghosh, Yu, 2024, "The Impact of Initialization on LoRA Finetuning Dynamics": ``Z_A``, ``Z_B`` and the
        split. Fixed inputs captured once, and ``s`` inside ``Z_B``: derived here.
    """

    def __init__(
        self,
        model: nn.Module,
        probe_batch: ProbeBatch,
        *,
        every: int = 20,
        max_rows: int = 256,
        adapter: str | None = None,
        observe: Callable[[list[Row]], object] | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SpecError(f"every={every!r} must be a whole number of steps, at least 1; 20 is the default.")
        self.every = every
        found, name = _sites_of(model, adapter)
        self.probe = capture(model, probe_batch, found, max_rows=max_rows)
        self.uncalled, self.called_again = self.probe.uncalled, self.probe.called_again
        called = [site for site in found if site.name in self.probe.inputs]
        measured = [MeasuredSite(site=s, adapter=name, read=self.probe.inputs[s.name]) for s in called]
        self._measurement = SiteMeasurement(measured, every=every, observe=observe)
        self._steps = OptimizerSteps(self._measurement)
        self.records = self._measurement.records

    @property
    def step(self) -> int:
        """How many optimizer steps there were; set it where a run is resumed."""
        return self._steps.step

    @step.setter
    def step(self, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise SpecError(f"step={count!r} must be a whole number of steps done, at least 0.")
        self._steps.step = count

    @property
    def kept_bytes(self) -> int:
        """Bytes held from step to step: the probe's inputs, and the factors of the start."""
        starts = (t for site in self._measurement.sites for t in site.start)
        return self.probe.kept_bytes + sum(t.numel() * t.element_size() for t in starts)

    def __enter__(self) -> FeatureDynamics:
        if self._steps.listening:
            raise SpecError("This FeatureDynamics is entered already. Leave it first, or make a second one.")
        self._steps.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._steps.stop(finish=kind is None)
        if kind is None and self._steps.strangers and not self._steps.heard:
            warnings.warn(
                "An optimizer has stepped, but none that holds a trained factor: nothing was measured. Build the"
                " optimizer after the adapter is attached or frozen, over asymlora.param_groups(model, lr=...).",
                stacklevel=2,
            )


def _sites_of(model: nn.Module, adapter: str | None) -> tuple[list[Site], str | None]:
    """Return the sites, and the adapter's name where they are PEFT's.

    Raises:
        AttachError: A factor is not held whole, or the update is in the base now.
    """
    found = list(sites(model, adapter))
    for site in found:
        refuse_divided(site, site.A, site.B)
    if find_attached(model) is not None:
        refuse_folded(model, "measure its dynamics")
        return found, None
    name, layers = plain_layers(model, adapter)
    if merged := [path for path, layer in layers.items() if layer.merged]:
        raise AttachError(
            f"The adapter {name!r} is merged into {len(merged)} layers ({merged[0]}, ...), where it does not train."
            " Call unmerge_adapter() first."
        )
    return found, name
