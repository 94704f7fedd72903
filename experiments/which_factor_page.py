"""Write `docs/which_factor.md` from the kept findings of every artefact; a test holds the page to them.

Questions and answers are in `asymlora.papers.which_factor`; which answer is given follows from the findings.
"""

from __future__ import annotations

import sys
from pathlib import Path

from asymlora.errors import AsymloraError
from asymlora.papers import catalogue
from asymlora.papers.which_factor import GUIDE
from asymlora.reproduce.factor_guide import read_backings, render
from asymlora.reproduce.kept_results import KEPT, read_kept
from asymlora.reproduce.tuned_rates import tuned_rates

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGE = ROOT / "docs" / "which_factor.md"


def page(results: Path = RESULTS) -> str | None:
    """Return the page that belongs to kept findings; None where no question is answered by them.

    Args:
        results: Folder with a folder for each artefact.
    """
    artefacts = list(catalogue.every())
    GUIDE.refuse_unknown(artefacts)
    backings = read_backings(artefacts, results)
    answered = any(answer.fits(backings) for question in GUIDE.questions for answer in question.answers)
    if not answered:
        return None
    folders = {artefact.name: results / artefact.name for artefact in artefacts}
    kept = {name: read_kept(folder).evidence for name, folder in folders.items() if (folder / KEPT).is_file()}
    return render(GUIDE, backings, rates=tuned_rates(kept))


def main() -> None:
    """Write the page."""
    try:
        text = page()
    except AsymloraError as error:
        sys.exit(str(error))
    if text is None:
        print("No kept finding answers a question yet: asymlora reproduce NAME --keep experiments/results.")
        return
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
