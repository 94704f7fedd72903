from __future__ import annotations

from pathlib import Path

import pytest

from asymlora.errors import SpecError
from asymlora.reproduce.claim import Finding
from asymlora.reproduce.remarks import Remark, read_remarks, without_remark

FINDINGS = {
    "ahead": Finding(verdict="fails", ours="no"),
    "shared": Finding(verdict="undecided", ours="who knows"),
    "stable": Finding(verdict="holds", ours="yes"),
    "large": Finding(verdict="not testable here", ours="no"),
}
GOOD = """\
ahead:
  verdict: fails
  explanation: >
    The model is
    small.
  would_decide: A larger one.
"""


def _read(folder: Path, text: str) -> dict[str, Remark]:
    (folder / "remarks.yaml").write_text(text, encoding="utf-8")
    return read_remarks(folder, FINDINGS)


def test_a_remark_is_read_as_one_line(tmp_path: Path) -> None:
    found = _read(tmp_path, GOOD)
    assert found == {"ahead": Remark(verdict="fails", explanation="The model is small.", would_decide="A larger one.")}


def test_claims_that_fail_or_are_undecided_need_one(tmp_path: Path) -> None:
    assert read_remarks(tmp_path, FINDINGS) == {}
    assert without_remark(FINDINGS, {}) == ["ahead", "shared"]
    assert without_remark(FINDINGS, _read(tmp_path, GOOD)) == ["shared"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("verdict: fails", "verdict: undecided"), r"ahead explains 'undecided', and the kept verdict is 'fails'"),
        (("ahead:", "behind:"), r"behind is no claim here; claims are ahead, shared, stable, large"),
        (("verdict: fails", "verdict: lost"), r"verdict 'lost'; allowed: holds, fails"),
        (("would_decide: A larger one.", "hope: A larger one."), r"needs verdict, explanation, would_decide"),
        (("A larger one.", "' '"), r"empty text"),
        (("A larger one.", "7"), r"no text; put it in quotes"),
    ],
)
def test_what_is_stale_or_lacking_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _read(tmp_path, GOOD.replace(*change))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"x is no claim.*y is no claim"):
        _read(tmp_path, "x: {}\ny: {}\n")
