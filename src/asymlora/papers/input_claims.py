"""Claims of zhu_inputs: what inputs fill, what held factors reach, and whether that tells where A alone loses.

What is measured is in `asymlora.papers.input_points`. No torch in here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asymlora.papers.bracketed import AT_AN_END, open_arms, undecided_at_ends
from asymlora.papers.stated_tests import DECIDES, SIGN_FLIP, UNTOLD, known_before
from asymlora.papers.zhu_settings import DERIVED, THEORY
from asymlora.reproduce.by_seed import BySeed
from asymlora.reproduce.claim import Claim, Finding
from asymlora.reproduce.evidence import Evidence, MissingEvidenceError, Record, SweepEvidence
from asymlora.reproduce.paired_tests import NATS, Unit, bound_finding, paired_finding
from asymlora.reproduce.plain_findings import all_of, described, exact_finding
from asymlora.reproduce.rates_by_seed import closing_values, rate_sentence

SITES, CONVOLUTIONS, GROUPS = "sites", "convolutions", "layer_groups"
"""Parts of zhu_inputs."""
TITLES: Mapping[str, str] = {
    "minilm": "MiniLM", "smollm2": "SmolLM2", "vit": "ViT-S/14", "efficientnet": "EfficientNet-Lite0",
    "roberta": "RoBERTa-large", "llama": "LLaMA-2-7B", "vit_base": "ViT-B/16",
}  # fmt: skip
LAYER_GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qv": ("query and value", ("query", "value")),
    "up": ("feed-forward, up", ("intermediate.dense",)),
    "down": ("feed-forward, down", ("output.dense",)),
}
"""Layers that are adapted alone: a name for people, and what they are in a block (``role`` of a record)."""
MOST, FEW, CLOSE = 0.9, 0.5, 0.05
"""Share of the layers that counts as nearly all; share of the outputs below which inputs fill few dimensions; relative
deviation of the draws' median from the closed form that counts as none."""
_SLOPE = Unit(scale=1.0, name="nats an octave", digits=4)
_FEWER = "fewer outputs than inputs"


# Layers --------------------------------------------------------------------------------------------------------------


def by_model(evidence: Evidence, part: str = SITES, *, inside: bool = True) -> dict[str, list[Record]]:
    """Return the records of layers by model.

    Args:
        evidence: Records of the artefact.
        part: Name of the part.
        inside: Layers of blocks alone: no head, no stem.

    Raises:
        PartNotRunError: There are none.
    """
    found: dict[str, list[Record]] = {}
    for record in evidence.records(part):
        if record["block"] is not None or not inside:
            found.setdefault(record["model"], []).append(record)
    return found


def octaves_ahead(record: Record) -> float:
    """Return log2 of what B alone reaches over what A alone does, by the closed forms of the means."""
    return math.log2(record["random_A"] / record["random_B"])


def _is(record: Record, roles: Sequence[str]) -> bool:
    role = record["role"]
    return any(role == each or (role.endswith(f".{each}") and each != "output.dense") for each in roles)


def _share(holds: Sequence[bool], said: str) -> Finding:
    share = sum(holds) / len(holds)
    return exact_finding(share >= MOST, f"{sum(holds)} of {len(holds)} layers ({100 * share:.0f} %); {said}.")


def _fill_few(part: str) -> Callable[[Evidence], Finding]:
    def judge(evidence: Evidence) -> Finding:
        found: dict[str, Finding] = {}
        for model, records in by_model(evidence, part).items():
            ratios = [r["input_ratio"] for r in records]
            centred = [r["centred_ratio"] for r in records if r["centred_ratio"] is not None]
            said = (
                f"dimensions filled {min(ratios):.3g} to {max(ratios):.3g}, median {statistics.median(ratios):.3g}"
                f" (about the mean {statistics.median(centred):.3g}), of {_sides(records)}"
            )
            found[TITLES[model]] = _share([r["input_ratio"] < FEW * r["outputs"] for r in records], said)
        return all_of(found)

    return judge


def _sides(records: Sequence[Record]) -> str:
    into, out = ([r[side] for r in records] for side in ("fan_in", "outputs"))
    return f"{min(into)} to {max(into)} inputs; outputs {min(out)} to {max(out)}"


def _reaches_more(part: str) -> Callable[[Evidence], Finding]:
    def judge(evidence: Evidence) -> Finding:
        found: dict[str, Finding] = {}
        for model, records in by_model(evidence, part).items():
            shares = [
                f"{100 * statistics.median(r[name] for r in records):.2g} % {words}"
                for name, words in (("random_A", "over a random A"), ("random_B", "under a random B"))
            ]
            wins = [r["random_A"] > (1 + CLOSE) * r["random_B"] for r in records]
            found[TITLES[model]] = _share(wins, f"medians {' and '.join(shares)}")
        return all_of(found)

    return judge


def _signs_agree(evidence: Evidence) -> Finding:
    records = [r for r in evidence.records(SITES) if r["drawn_A"] is not None]
    if not records:
        raise MissingEvidenceError("layers with draws of held factors")
    named = {True: "B", False: "A"}
    pairs = [(r["outputs"] > r["input_ratio"], r["drawn_A"] > r["drawn_B"]) for r in records]
    for_A = [pair for pair in pairs if not pair[0]]
    wrong = [
        f"{TITLES[r['model']]} {r['site']} (criterion {named[pair[0]]}, draws {named[pair[1]]})"
        for r, pair in zip(records, pairs, strict=True)
        if pair[0] != pair[1]
    ]
    said = f"the criterion names A alone at {len(for_A)} of them, the draws agree at {sum(p[0] == p[1] for p in for_A)}"
    if wrong:
        said += f"; not at {'; '.join(wrong[:5])}" + ("; ..." if len(wrong) > 5 else "")
    return _share([first == second for first, second in pairs], said)


def _means_agree(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for model, records in by_model(evidence).items():
        ratios = [r["drawn_A"] / r["random_A"] for r in records if r["drawn_A"] is not None]
        if not ratios:
            raise MissingEvidenceError(f"layers of {TITLES[model]} with draws of held factors")
        middle = statistics.median(ratios)
        found[TITLES[model]] = exact_finding(
            abs(middle - 1) <= CLOSE,
            f"draws over closed form: median {middle:.3f}, {min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)}"
            " layers.",
        )
    return all_of(found)


def _weakest_down(evidence: Evidence) -> Finding:
    found: dict[str, Finding] = {}
    for model, records in by_model(evidence).items():
        octaves: dict[str, list[float]] = {}
        for record in records:
            kind = _FEWER if record["outputs"] < record["fan_in"] else record["role"]
            octaves.setdefault(kind, []).append(octaves_ahead(record))
        middles = {name: statistics.median(values) for name, values in octaves.items()}
        fewer = middles.pop(_FEWER, None)
        if fewer is None or not middles:
            raise MissingEvidenceError(f"layers of {TITLES[model]} with fewer outputs than inputs, and others")
        said = ", ".join(f"{name} {value:.2f}" for name, value in sorted(middles.items(), key=lambda item: item[1]))
        found[TITLES[model]] = exact_finding(
            fewer < min(middles.values()),
            f"octaves that B alone is ahead, medians: {_FEWER} {fewer:.2f}, {said}.",
        )
    return all_of(found)


# Layer groups adapted alone ------------------------------------------------------------------------------------------


def arm_of(group: str, trained: str) -> str:
    """Return the name of an arm: a group of layers, and the factor that is trained there."""
    return f"{group}_{trained}_only"


def predicted(evidence: Evidence) -> dict[str, float]:
    """Return the mean octaves that B alone is ahead at the layers of each group, of the model that is swept.

    Args:
        evidence: Records of the artefact.

    Raises:
        MissingEvidenceError: Layers of a group were not measured.
    """
    found: dict[str, float] = {}
    for group, (title, roles) in LAYER_GROUPS.items():
        records = [r for r in evidence.records(SITES) if r["model"] in ("minilm", "roberta")]
        octaves = [octaves_ahead(r) for r in records if r["block"] is not None and _is(r, roles)]
        if not octaves:
            raise MissingEvidenceError(f"layers of the group {title}")
        found[group] = statistics.fmean(octaves)
    return found


def losses_behind(sweep: SweepEvidence, group: str) -> BySeed:
    """Return the test loss of A alone less that of B alone in one group, by seed, each at its own best rate.

    Args:
        sweep: Of the groups.
        group: One of `LAYER_GROUPS`.

    Raises:
        MissingEvidenceError: Closing runs of an arm are missing.
    """
    first, second = (closing_values(sweep, arm_of(group, letter), metric="loss") for letter in "ab")
    return BySeed(
        {seed: first[seed] - second[seed] for seed in first if seed in second},
        planned={*first.planned, *second.planned},
    )


def _signs(evidence: Evidence) -> Finding:
    sweep, octaves = evidence.sweep(GROUPS), predicted(evidence)
    found: dict[str, Finding] = {}
    for group, (title, _) in LAYER_GROUPS.items():
        first, second = (closing_values(sweep, arm_of(group, letter), metric="loss") for letter in "ab")
        one = paired_finding(
            first, second, claimed="greater" if octaves[group] > 0 else "less", show=NATS,
            what="Test loss of A alone less that of B alone, B alone predicted to be"
            f" {octaves[group]:+.2f} octaves ahead",
        )  # fmt: skip
        rates = " ".join(rate_sentence(sweep, arm_of(group, letter)) for letter in "ab")
        found[title] = replace(one, ours=f"{one.ours} {rates}")
    return undecided_at_ends(all_of(found), _open(sweep))


def _order(evidence: Evidence) -> Finding:
    sweep, octaves = evidence.sweep(GROUPS), predicted(evidence)
    behind = {group: losses_behind(sweep, group) for group in LAYER_GROUPS}
    seeds = sorted(set[int].intersection(*map(set, behind.values())))
    if not seeds:
        raise MissingEvidenceError("seeds with closing runs of every group")
    slopes = {
        seed: statistics.linear_regression(
            [octaves[group] for group in behind], [values[seed] for values in behind.values()]
        ).slope
        for seed in seeds
    }  # fmt: skip
    planned = {seed for values in behind.values() for seed in values.planned}
    found = bound_finding(
        BySeed(slopes, planned=planned), claimed="above", bound=0.0, show=_SLOPE,
        what="Slope of the loss that A alone is behind on the octaves that B alone is predicted to be ahead",
    )  # fmt: skip
    return undecided_at_ends(replace(found, ours=f"{found.ours} {_listed(behind, octaves)}"), _open(sweep))


def _listed(behind: Mapping[str, Mapping[int, float]], octaves: Mapping[str, float]) -> str:
    said = [
        f"{LAYER_GROUPS[group][0]} {octaves[group]:.2f} octaves and {statistics.fmean(values.values()):+.4f} nats"
        for group, values in behind.items()
    ]
    return f"By group, predicted and measured: {'; '.join(said)}."


def _open(sweep: SweepEvidence) -> list[str]:
    names = {
        arm_of(group, letter): f"{letter.upper()} alone in {title}"
        for group, (title, _) in LAYER_GROUPS.items()
        for letter in "ab"
    }
    return open_arms(sweep, names)


def _accuracies(evidence: Evidence) -> Finding:
    sweep = evidence.sweep(GROUPS)
    said: list[str] = []
    for group, (title, _) in LAYER_GROUPS.items():
        means = [
            statistics.fmean(closing_values(sweep, arm_of(group, letter), metric="accuracy").values())
            for letter in "ba"
        ]
        said.append(f"{title}: B alone {100 * means[0]:.2f}, A alone {100 * means[1]:.2f}")
    return described(
        f"Mean test accuracy in points, each at the rate with its lowest validation loss. {'; '.join(said)}."
    )


# The claims ----------------------------------------------------------------------------------------------------------

_HOW = (
    "Second moments of the inputs, about zero, as a frozen bias leaves their mean to count (about their mean beside"
    " it); the first gradient at a fitted head in the place of the update; rank 8; heads and embeddings left out"
)
_KNOWN = known_before(
    "of MiniLM on TREC-6 and SST-2, that inputs of linear layers fill 4 to 80 dimensions, that a random A leaves 16 to"
    " 88 % of the first gradient's energy in reach and a random B 0.5 to 2.1 % (docs/diagnostics.md). After the test"
    " was stated, the code was tried on MiniLM at these settings (all of it holds there), and with one batch on one"
    " block of SmolLM2 and of ViT-S/14, which looked alike."
)
_KNOWN_CONVOLUTIONS = known_before(
    "nothing. After the test was stated, the code was tried on this network at these settings: it holds."
)
_SWEPT = (
    "Query and value, up-projections and down-projections of MiniLM, each adapted alone on TREC-6 at rank 8, A alone"
    " and B alone, each arm at the rate with its lowest validation loss"
)
_KNOWN_SWEEP = known_before(
    "the prediction: in the trial of MiniLM's layers B alone was ahead by 4.6 octaves at query and value, by 7.3 at"
    " up-projections and by 4.8 at down-projections. Of the runs nothing; over all linear layers together B alone is"
    " expected to learn faster."
)


def _claim(key: str, part: str, judge: Callable[[Evidence], Finding], **words: Any) -> Claim:
    return Claim(key=key, parts=(part,), judge=judge, **words)


def _of_layers(part: str, where: str, known: str) -> tuple[Claim, ...]:
    prefix = "" if part == SITES else f"{part}_"
    return (
        _claim(
            f"{prefix}inputs_fill_few", part, _fill_few(part), kind="derived", source=DERIVED,
            says=f"In {where} the inputs of a layer fill far fewer dimensions than it has outputs.",
            test=f"{_HOW}. Participation ratio below half the outputs at {100 * MOST:g} % of a model's layers: holds"
            f" where at every model, else fails.{known}",
        ),
        _claim(
            f"{prefix}random_a_reaches_more", part, _reaches_more(part), kind="derived",
            source=f"{DERIVED}; the gradient of each factor: {THEORY}",
            says=f"In {where} a random A leaves more of the first update in reach of B than a random B does of A.",
            test=f"{_HOW}. More by 5 % of it or above at {100 * MOST:g} % of a model's layers, by the closed forms of"
            f" the means: holds where at every model, else fails.{known}",
        ),
    )  # fmt: skip


CLAIMS = (
    *_of_layers(SITES, "pretrained transformers", _KNOWN),
    _claim(
        "criterion_agrees", SITES, _signs_agree, kind="derived", source=DERIVED,
        says="Outputs against the dimensions that inputs fill tells which factor reaches more of the first update.",
        test=f"{_HOW.replace('heads and embeddings left out', 'heads with the rest, embeddings left out')}; four draws"
        " of each held factor. Same sign of outputs less participation ratio and of the means of III_A less III_B at"
        f" {100 * MOST:g} % of all layers: holds, else fails. How many of the layers are on either side is told: where"
        f" all are on one side, agreement says little.{_KNOWN}",
    ),
    _claim(
        "closed_form_of_the_mean", SITES, _means_agree, kind="derived", source=DERIVED,
        says="The closed form of the mean share over random A holds for the spectra of real inputs.",
        test=f"{_HOW}; four draws of A at each layer. Median over a model's layers of draws over closed form within"
        f" {100 * CLOSE:g} % of 1: holds where at every model, else fails."
        + known_before(
            "of power laws, within 4 %. After the test was stated, the code was tried on MiniLM at these settings:"
            " median 0.945, so that it fails."
        ),
    ),
    _claim(
        "weakest_at_down_projections", SITES, _weakest_down, kind="derived", source=DERIVED,
        says="B alone is least ahead where a layer has fewer outputs than inputs.",
        test=f"{_HOW}. Median octaves that B alone is ahead: at layers with fewer outputs than inputs"
        " (down-projections;"
        " of SmolLM2 keys and values too) below those at every other kind of layer of a block, in every model: holds,"
        " else"
        " fails."
        + known_before(
            "as above; and of MiniLM on TREC-6 medians of 4.42 at keys and 4.44 at values, 4.84 at down-projections and"
            " 4.88 at queries (docs/diagnostics.md), so that it fails."
        ),
    ),
    *_of_layers(CONVOLUTIONS, "a network of convolutions", _KNOWN_CONVOLUTIONS),
    Claim(
        key="signs_as_predicted", parts=(SITES, GROUPS), judge=_signs, kind="question",
        source=f"{THEORY} gives the explanation, and no test of it",
        says="In each group of layers adapted alone, the factor that is predicted to reach more ends with the lower"
        " loss.",
        test=f"{_SWEPT}: test loss of A alone less that of B alone by closing seed, of the predicted sign (mean octaves"
        f" over the layers of the group); each group: {SIGN_FLIP}. Holds where every group is significant with that"
        f" sign, fails where one is with the other, else undecided. {AT_AN_END}{UNTOLD}{_KNOWN_SWEEP}",
    ),
    Claim(
        key="order_as_predicted", parts=(SITES, GROUPS), judge=_order, kind="question",
        source=f"{THEORY} gives the explanation, and no test of it",
        says="A alone loses most where it is predicted to reach least.",
        test=f"{_SWEPT}: for each closing seed the slope over the three groups of the test loss of A alone less that of"
        f" B alone on the predicted octaves, above 0: {SIGN_FLIP}; {DECIDES}. The groups differ in the values that are"
        " trained as well (B has four times those of A at up-projections, a quarter at down-projections), so where it"
        f" holds it does not tell captured energy from their number. {AT_AN_END}{UNTOLD}{_KNOWN_SWEEP}",
    ),
    Claim(
        key="accuracy_by_group", parts=(GROUPS,), judge=_accuracies, kind="question",
        source=f"{THEORY} gives the explanation, and no test of it",
        says="The same order shows in accuracy.",
        test="None: accuracy on 500 rows is coarser than the loss. Described: mean test accuracies of each group and"
        f" factor.{_KNOWN_SWEEP}",
    ),
)  # fmt: skip
"""All of them."""
