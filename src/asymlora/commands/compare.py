"""``asymlora compare``: the arms of a sweep, or the results of several folders, beside each other."""

from __future__ import annotations

import json
from typing import Any


def parser() -> Any:
    """Return the parser."""
    from jsonargparse import ArgumentParser

    made = ArgumentParser(
        usage="asymlora compare FOLDER [FOLDER ...] [options]",
        description="Compare the arms of one sweep, or several sweeps and runs of asymlora finetune: by the test part,"
        " paired by seed where task, data, metric and budget are equal. Where they are not, it is said in what they"
        " differ, and nothing is tested.",
        exit_on_error=False,
    )
    made.add_argument("folders", nargs="+", metavar="FOLDER", help="folder of a sweep or of a run")
    made.add_argument(
        "--arm",
        action="append",
        type=str,
        metavar="NAME",
        help="arm or cell to show, once for each; default: all. The correction for many comparisons counts all",
    )
    made.add_argument(
        "--margin",
        type=float,
        help="largest difference that counts as none, in units of the metric (0.005: half a point of accuracy)",
    )
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return made


def run(options: dict[str, Any]) -> int:
    """Read, compare and print.

    Args:
        options: What the user gave.

    Returns:
        The exit code.
    """
    from asymlora.sweep.comparing import compare_results
    from asymlora.sweep.run_folders import read_results

    results = read_results(options["folders"])
    compared = compare_results(results, arms=options.get("arm") or (), margin=options.get("margin"))
    if options.get("json"):
        print(json.dumps(compared.to_dict(), indent=1, allow_nan=False))
        return 0
    from rich.console import Console

    from asymlora.report.comparison_tables import comparison_tables

    Console().print(comparison_tables(compared), highlight=False)
    return 0
