"""Imports run downwards only, heavy packages have one door each, and importing the package is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "asymlora"
LAYERS = (
    ("errors",),
    ("schema", "atomic", "peft_patterns", "untrusted_files", "autocasting", "sharding", "packed_base"),
    ("peft_format",),
    ("factor_spec",),
    ("spec",),
    ("draws", "orders", "dropout", "cpu_kernel"),
    ("singular", "cpu_product"),
    ("init", "ops"),
    ("shared_code", "own_file"),
    ("layers",),
    ("kinds",),
    ("site_view", "targets", "adapter_file"),
    ("theory",),
    ("adapter_reading", "fitting"),
    ("peft_sites",),
    ("checkpoint", "optim", "gradient_correction"),
    ("installing", "converting"),
    ("attaching",),
    ("merging", "peft_forward"),
    ("peft_bridge",),
    ("peft_conversion",),
    ("diagnostics",),
    ("tasks",),
    ("train",),
    ("sweep",),
    ("report",),
    ("reproduce",),
    ("papers",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom up; a module imports from its own row's earlier parts or below, never from above."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
DOORS = {
    "transformers": ("tasks", "train"),
    "sklearn": ("tasks",),
    "datasets": ("tasks",),
    "pandas": ("tasks",),
    "rich": ("report", "commands", "cli"),
    "jsonargparse": ("commands", "cli"),
    "yaml": ("train",),
    "peft": ("peft_forward", "peft_conversion", "train"),
    "ray": ("sweep",),
    "optuna": ("sweep",),
    "statsmodels": ("sweep",),
    "plotly": ("report",),
}


def _imports() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for file in sorted(SOURCE.rglob("*.py")):
        module = file.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.append((module, node.module))
    return found


def _part(module: str) -> str:
    return module.removeprefix("asymlora.").partition(".")[0]


def test_every_module_has_its_place_in_the_layers() -> None:
    parts = {_part(module) for module, _ in _imports()} - {"__init__"}
    assert parts == set(LEVEL)


def test_imports_run_downwards_only() -> None:
    upward = [
        f"{module} imports {target}"
        for module, target in _imports()
        if target.startswith("asymlora.")
        and module != "__init__"
        and LEVEL[_part(target)] >= LEVEL[_part(module)]
        and _part(target) != _part(module)
    ]
    assert not upward


def test_heavy_packages_have_their_doors() -> None:
    elsewhere = [
        f"{module} imports {target}"
        for module, target in _imports()
        if (top := target.partition(".")[0]) in DOORS and _part(module) not in DOORS[top]
    ]
    assert not elsewhere


@pytest.mark.parametrize(
    "name", ["errors", "schema", "factor_spec", "spec", "atomic", "cli", "train.recipe", "tasks.inputs"]
)
def test_words_of_the_library_load_no_torch(name: str) -> None:
    light = f"import sys, asymlora.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0


def test_no_file_is_a_drawer() -> None:
    drawers = {"util", "utils", "common", "helper", "helpers", "misc", "core"}
    assert not [f.name for f in SOURCE.rglob("*.py") if drawers & set(f.stem.split("_"))]


def test_public_names_exist_and_modules_do_not_hide_them() -> None:
    code = (
        "import asymlora, asymlora.attaching, asymlora.site_view, asymlora.train.run\n"
        "bad = [n for n in asymlora.__all__ if type(getattr(asymlora, n)).__name__ == 'module' and n != 'errors']\n"
        "assert not bad, bad\n"
        "assert set(asymlora.__all__) <= set(dir(asymlora))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import asymlora

    with pytest.raises(AttributeError, match="no attribute 'attatch'"):
        _ = asymlora.attatch  # pyright: ignore[reportAttributeAccessIssue]


def test_every_module_has_a_mirror_among_the_tests() -> None:
    tests = Path(__file__).parent
    without = [
        module
        for file in SOURCE.rglob("*.py")
        if file.name not in ("__init__.py", "__main__.py")
        and not (tests / (module := file.relative_to(SOURCE)).with_name(f"test_{module.name}")).is_file()
    ]
    assert not without
