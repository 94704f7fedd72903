from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.utils import logging as transformers_logging

import asymlora
from asymlora.cli import main
from asymlora.train import run as run_module
from asymlora.train.recipe import Recipe
from asymlora.train.run_folder import RunFolder
from cases import small_reviews

HEAVY = ("torch", "transformers", "peft", "ray", "plotly", "datasets", "sklearn", "pandas", "scipy", "accelerate")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place of its own for `runs/`, and transformers as talkative as before."""
    monkeypatch.chdir(tmp_path)
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


def _refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail and return its one line."""
    code = main(list(argv))
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("asymlora: ")
    assert "Traceback" not in shown.out + shown.err
    return shown.err


# --- mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no command": ((), r"expected \"command\" to be one of \{finetune,predict,merge,convert,"),
    "unknown command": (("finetun",), r"invalid choice: 'finetun' \(choose from .*finetune"),
    "misspelt option": (
        ("finetune", "--train.stepz", "3"),
        r"no option --train\.stepz\. Did you mean '--train\.steps'\?",
    ),
    "option with =": (("finetune", "--train.stepz=3"), r"no option --train\.stepz\. Did you mean '--train\.steps'\?"),
    "option without its part": (("finetune", "--steps", "3"), r"Did you mean '--train\.steps'\?"),
    "option with hyphens": (("finetune", "--train.batch-size", "3"), r"Did you mean '--train\.batch_size'\?"),
    "option of nothing": (("finetune", "--xyzzy"), r"no option --xyzzy\. All options: asymlora finetune --help"),
    "no whole number": (("finetune", "--train.steps", "2.5"), r"train\.steps.*Got value: 2\.5"),
    "no number": (("finetune", "--train.lr", "fast"), r"train\.lr.*Got value: fast"),
    "no truth value": (("finetune", "--adapter.A.trainable", "maybe"), r"adapter\.A\.trainable.*Got value: maybe"),
    "no init": (("finetune", "--adapter.A.init", "gausian"), r"adapter\.A\.init.*'gaussian'.*Got value: gausian"),
    "no value": (("finetune", "--train.steps"), r"--train\.steps: expected one argument"),
    "two files": (("finetune", "a.yaml", "b.yaml"), r"unrecognized arguments: b\.yaml|no recipe at a\.yaml"),
    "no file": (("finetune", "absent.yaml"), r"no recipe at absent\.yaml\. Give a YAML file"),
    "no preset": (("finetune", "--adapter.preset", "b_olny"), r"'b_olny' names no adapter\. Did you mean 'b_only'"),
    "out of range": (
        ("finetune", "--train.steps", "0", "--train.lr", "-1"),
        r"steps=0 must be .*; train\.lr=-1\.0 must",
    ),
    "rate of a frozen factor": (("finetune", "--train.lr_A", "1e-3"), r"train\.lr_A is given, but A is frozen"),
    "both frozen": (("finetune", "--adapter.B.trainable", "false"), r"both frozen: nothing is trained"),
    "no data": (("finetune", "--data.name", "absent.csv"), r"There is no data at absent\.csv\. Give a file"),
    "no model": (("finetune", "--model.name", "./absent", "--data.name", "rows.csv"), r"no model folder at \./absent"),
    "resume nothing": (("finetune", "--resume"), r"No unfinished run below runs/"),
    "resume and overwrite": (("finetune", "--resume", "--overwrite"), r"give one of them"),
    "foreign folder": (("finetune", "--output", "documents", "--overwrite"), r"documents exists and holds no run"),
    "predict without a text": (("predict", "somewhere"), r"required: .*text"),
    "predict with an option": (("predict", "documents", "a text", "--foo"), r"unrecognized arguments: --foo"),
    "predict of no run": (("predict", "documents", "a text"), r"documents is no run of asymlora \(no recipe\.yaml"),
    "predict of nothing": (("predict", "absent", "a text"), r"absent is no run"),
    "merge without a place": (("merge", "documents"), r"required: .*out"),
    "merge of no run": (("merge", "documents", "new"), r"documents is no run of asymlora"),
    "merge over something": (("merge", "documents", "documents"), r"documents exists; nothing is overwritten"),
}


@pytest.fixture
def _surroundings() -> None:
    """What the mistakes refer to."""
    Path("documents").mkdir()
    Path("documents/thesis.txt").write_text("years of work")
    rows = "\n".join(f"a film {i},{'xy'[i % 2]}" for i in range(30))
    Path("rows.csv").write_text(f"text,label\n{rows}\n")


@pytest.mark.usefixtures("_surroundings")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_on_stderr_and_exit_code_2(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = MISTAKES[mistake]
    assert re.search(words, _refused(capsys, *argv))
    # Nothing was begun and nothing touched.
    assert not Path("runs").exists()
    assert Path("documents/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("prefix", ["", "adapter."])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("r", "--adapter.rank"),
        ("lora_alpha", "--adapter.alpha"),
        ("lora_dropout", "--adapter.dropout"),
        ("target_modules", "--adapter.targets"),
        ("use_rslora", "--adapter.scaling"),
        ("init_lora_weights", "--adapter.A.init"),
    ],
)
def test_pefts_option_is_answered_with_ours(
    theirs: str, ours: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _refused(capsys, "finetune", f"--{prefix}{theirs}", "8")
    assert f"There is no option --{prefix}{theirs}. That is PEFT's name for" in message
    assert f": {ours}. " in message


def test_mistakes_of_a_recipe_file_are_answered_like_those_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("train: {stpes: 3}\nadapter: {rank: 4}\n")
    assert "'train.stpes' is unknown. Did you mean 'steps'?" in _refused(capsys, "finetune", "recipe.yaml")
    Path("recipe.yaml").write_text("train: [\n  1\n")
    assert "recipe.yaml is not YAML" in _refused(capsys, "finetune", "recipe.yaml")


@pytest.mark.parametrize("package", ["transformers", "rich", "jsonargparse", "yaml"])
def test_missing_package_is_answered_with_the_extra_to_install(package: str) -> None:
    # In a process of its own, where nothing holds the package already.
    Path("recipe.yaml").write_text("train: {steps: 3}\n")
    code = f"import sys; sys.modules[{package!r}] = None\nfrom asymlora.cli import main\n"
    code += "sys.exit(main(['finetune', 'recipe.yaml']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "pip install 'asymlora[train]'" in done.stderr
    assert not Path("runs").exists()


def test_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_recipe: Recipe, *, observer: Any, **_: Any) -> None:
        observer.begun("runs/one")
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "finetune", interrupted)
    assert main(["finetune"]) == 130
    assert "Interrupted. Go on with: asymlora finetune --output runs/one --resume" in capsys.readouterr().err


# --- what reaches the run ------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, dict[str, Any]]]:
    """The recipes and options that `finetune` is called with, instead of a run."""
    calls: list[tuple[Recipe, dict[str, Any]]] = []

    def note(recipe: Recipe, **options: Any) -> None:
        calls.append((recipe, options))
        raise asymlora.errors.DataError("noted")

    monkeypatch.setattr(run_module, "finetune", note)
    return calls


Asked = list[tuple[Recipe, dict[str, Any]]]


def test_strict_reaches_the_run_and_is_off_by_default(asked: Asked) -> None:
    main(["finetune", "--strict"])
    main(["finetune"])
    assert [options["strict"] for _, options in asked] == [True, False]


def test_without_arguments_the_default_recipe_runs_in_a_new_folder(asked: Asked) -> None:
    main(["finetune"])
    (recipe, options), *_ = asked
    assert recipe == Recipe()
    assert (options["output"], options["resume"], options["overwrite"]) == (None, False, False)


def test_options_win_over_the_file_and_the_file_over_the_defaults(asked: Asked) -> None:
    Path("recipe.yaml").write_text("adapter: {preset: lora, rank: 4}\ntrain: {steps: 7, lr: 1e-3}\n")
    main(["finetune", "recipe.yaml", "--train.lr", "1e-4", "--adapter.B.lr_ratio=8", "--output", "here"])
    (recipe, options), *_ = asked
    lora = asymlora.AdapterSpec.lora(rank=4)
    assert recipe.adapter == dataclasses.replace(lora, B=dataclasses.replace(lora.B, lr_ratio=8.0))
    assert (recipe.train.steps, recipe.train.lr) == (7, 1e-4)
    assert options["output"] == "here"


def test_preset_given_as_an_option_wins_over_the_factors_of_the_file(asked: Asked) -> None:
    # recipe.yaml of a run states both factors; --adapter.preset on top of it must mean what it says.
    Path("recipe.yaml").write_text(Recipe(adapter=asymlora.AdapterSpec.b_only(rank=4)).to_yaml())
    main(["finetune", "recipe.yaml", "--adapter.preset", "init_b"])
    assert asked[0][0].adapter == asymlora.AdapterSpec.init_b(rank=4)


def test_shorthand_of_the_released_code_is_a_preset_in_either_order(asked: Asked) -> None:
    for text in ("A_rand_hB_zero", "hB_zero_A_rand"):
        main(["finetune", "--adapter.preset", text])
    assert [recipe.adapter for recipe, _ in asked] == [asymlora.AdapterSpec.b_only()] * 2


def test_lists_may_be_one_word_or_in_brackets_and_none_is_null(asked: Asked) -> None:
    main(["finetune", "--adapter.targets", "query", "--adapter.modules_to_save", "norm", "--adapter.alpha", "null"])
    main(["finetune", "--adapter.targets", "[query, value]", "--adapter.modules_to_save", "[norm]"])
    one, several = asked[0][0].adapter, asked[1][0].adapter
    assert (one.targets, one.modules_to_save, one.alpha) == (("query",), ("norm",), None)
    assert (several.targets, several.modules_to_save) == (("query", "value"), ("norm",))


def test_every_plain_field_of_the_recipe_is_an_option_that_reaches_it(asked: Asked) -> None:
    other = Recipe.from_dict(
        {
            "model": {"name": "owner/model", "revision": "v1", "pooling": "mean"},
            "data": {"name": "owner/rows", "subset": "s", "text": "t", "label": "l", "group": "g", "max_tokens": 9}
            | {"validation_fraction": 0.3, "test_fraction": 0.4, "seed": 5},
            "adapter": {"preset": "a_only", "rank": 3, "alpha": 5.0, "scaling": "rank_stabilized", "dropout": 0.2}
            | {"A": {"lr_ratio": 3.0}, "B": {"init": "gaussian", "lr_ratio": 2.0}}
            | {"targets": ["q"], "modules_to_save": ["n"], "seed": 6},
            "train": {"steps": 1, "batch_size": 2, "gradient_accumulation": 3, "lr": 0.5, "lr_A": 0.6, "lr_head": 0.7}
            | {"weight_decay": 0.1, "schedule": "cosine", "warmup_fraction": 0.5, "max_grad_norm": 2.0}
            | {"head_start": "random", "evaluate_every": 4, "keep_checkpoints": 5, "seed": 7},
        }
    )
    argv = [f"--{name}={json.dumps(value)}" for name, value in _leaves(other.to_dict())]
    assert len(argv) == len(list(_leaves(Recipe().to_dict())))
    main(["finetune", *(word.replace('"', "") if "[" not in word else word for word in argv)])
    assert asked[0][0] == other


def _leaves(mapping: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def test_resume_alone_takes_the_stored_recipe_of_the_run(asked: Asked) -> None:
    recipe = Recipe.from_dict({"train": {"steps": 9}})
    with RunFolder(path=Path("runs/one")).begun(recipe):
        pass
    main(["finetune", "--resume"])
    main(["finetune", "--resume", "--output", "runs/one"])
    assert [(given, options["output"], options["resume"]) for given, options in asked] == [
        (recipe, Path("runs/one"), True)
    ] * 2


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run made through the command line, and the recipe file it was made from."""
    place = tmp_path_factory.mktemp("cli")
    reviews = small_reviews()
    lines = [",".join(row[key] for key in ("text", "label", "film")) for row in reviews]
    (place / "rows.csv").write_text("\n".join(["text,label,film", *lines]) + "\n")
    content = {
        "model": {"name": str(small_encoder), "pooling": "mean"},
        "data": {"name": str(place / "rows.csv"), "group": "film", "max_tokens": 16},
        "adapter": "b_only",
        "train": {"steps": 500, "evaluate_every": 4, "batch_size": 8, "lr": 0.01},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(content))
    argv = ["finetune", str(place / "recipe.yaml"), "--train.steps", "12", "--adapter.rank", "2"]
    assert main([*argv, "--output", str(place / "run")]) == 0
    return place / "run", place / "recipe.yaml"


def test_finetune_shows_the_figures_of_its_result_and_what_comes_next(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, recipe = finished
    argv = ["finetune", str(recipe), "--train.steps", "8", "--adapter.rank", "2", "--output", "again"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    result = json.loads(Path("again/result.json").read_text())
    assert result["steps"] == 8
    for figure in (
        f"{result['score']:.1%}",
        f"{result['baseline']:.1%}",
        f"{result['trained_parameters']:,}",
        f"{result['best_step']} of 8",
        "adapter (B only, rank 2) and head",
        "Run folder: again",
        "Adapter: again/adapter (PEFT loads it too)",
        'Next: asymlora predict again "an input of yours"',
    ):
        assert figure in shown
    files = {"recipe.yaml", "environment.json", "records.jsonl", "dynamics.jsonl", "health.json", "result.json"}
    assert files | {"adapter"} == {item.name for item in Path("again").iterdir()}
    assert "Health: nothing to report (watched: " in shown


def test_recipe_of_the_run_holds_what_file_and_options_said_together(finished: tuple[Path, Path]) -> None:
    run, _ = finished
    stored = Recipe.load(run / "recipe.yaml")
    assert stored.adapter == asymlora.AdapterSpec.b_only(rank=2)
    assert (stored.train.steps, stored.train.evaluate_every) == (12, 4)


def test_predict_prints_label_probability_and_text_of_each_text(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    texts = ["a lovely film", "the dull plot", "not\tsure [about] this"]
    assert main(["predict", str(run), *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [line.split("\t", 2) for line in lines]
    assert [text for *_, text in answers] == [*texts[:2], "not sure [about] this"]  # a tab would be a column
    assert {label for label, *_ in answers} <= {"fresh", "rotten"}
    assert all(0.5 <= float(probability) <= 1 for _, probability, _ in answers)


def test_merged_model_answers_like_the_run(finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = finished
    texts = [row["text"] for row in small_reviews(12, seed=5)]
    assert main(["merge", str(run), "merged"]) == 0
    assert capsys.readouterr().out == "merged\n"
    assert main(["predict", str(run), *texts]) == 0
    with_adapter = capsys.readouterr().out.splitlines()
    assert main(["predict", "merged", *texts]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert len(plain) == 12
    for one, other in zip(with_adapter, plain, strict=True):
        # Printed to three digits: one rounding of the merged weight may move the last of them.
        assert float(one.split("\t")[1]) == pytest.approx(float(other.split("\t")[1]), abs=2e-3)
        assert one.split("\t")[2] == other.split("\t")[2]


def test_existing_place_is_not_merged_over(finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = finished
    Path("taken").mkdir()
    assert "taken exists; nothing is overwritten. Choose a new folder." in _refused(capsys, "merge", str(run), "taken")
    assert list(Path("taken").iterdir()) == []


def test_finished_run_is_neither_resumed_nor_replaced_unasked(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = finished
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    resumed = _refused(capsys, "finetune", "--output", str(run), "--resume")
    assert re.search(r"The run in .*run has ended; its figures are in .*result\.json\. Nothing to resume\.", resumed)
    again = _refused(capsys, "finetune", str(recipe), "--output", str(run))
    assert "holds a finished run. Choose another --output, or replace it with --overwrite." in again
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_unfinished_run_is_not_asked_but_gone_on_with(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished[0], "half")
    Path("half/result.json").unlink()
    message = _refused(capsys, "predict", "half", "a text")
    assert "The run in half has not ended. Go on with it: asymlora finetune --output half --resume" in message


def test_resuming_with_another_recipe_names_the_difference(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished[0], "half")
    Path("half/result.json").unlink()
    argv = ["finetune", "half/recipe.yaml", "--train.lr", "0.5", "--output", "half", "--resume"]
    assert "(stored / given): train.lr: 0.01 / 0.5. Resume it without recipe options" in _refused(capsys, *argv)


# --- help ----------------------------------------------------------------------------------------------------------


def _help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_field_of_a_recipe_with_its_docstring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(_help(capsys, "finetune").split())
    for name, _ in _leaves(Recipe().to_dict()):
        found = re.search(rf" --{re.escape(name)} (\S+|\{{.*?\}}) (.*?) \((type|required|default)", text)
        assert found, name
        # At least two words: no option stands there without being explained.
        assert len(found[2].split()) >= 2, (name, found[2])


def test_help_of_a_field_is_what_its_docstring_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(_help(capsys, "finetune").split())
    for sentence in (
        "Optimizer steps, at least 1.",
        "Share of the steps over which the rate rises from 0, in [0, 1).",
        "Width of the bottleneck, at least 1 and at most min(in, out) of every target.",
        "Fraction of the entries of the adapter's input that is dropped in training, in [0, 1).",
    ):
        assert sentence in text
    assert "``" not in text


def test_help_of_the_program_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys)
    assert all(command in text for command in ("finetune", "predict", "merge"))
    assert "RUN" in _help(capsys, "predict")
    assert "OUT" in _help(capsys, "merge")


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert asymlora.__version__ in capsys.readouterr().out


LIGHT = {
    "import": "import asymlora",
    "names of specs": "import asymlora; asymlora.AdapterSpec.b_only(); asymlora.Recipe().to_yaml()",
    "help": "from asymlora.cli import main; main(['--help'])",
    "finetune help": "from asymlora.cli import main; main(['finetune', '--help'])",
    "predict help": "from asymlora.cli import main; main(['predict', '--help'])",
    "mistake": "from asymlora.cli import main; main(['finetune', '--train.stepz', '3'])",
}


@pytest.mark.parametrize("what", LIGHT)
def test_what_needs_no_model_loads_no_heavy_package(what: str) -> None:
    code = (
        f"import sys\ntry:\n    {LIGHT[what]}\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_program_asks_for_no_heavy_package_that_the_check_above_would_miss() -> None:
    code = "import sys, torch; print('LOADED', *[name for name in ('torch', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["LOADED", "torch"]


@pytest.mark.parametrize("argv", [["--help"], ["finetune", "--help"]])
def test_help_answers_within_a_second(argv: list[str]) -> None:
    # The best of three: the machine may be busy with other tests.
    program = Path(sys.executable).with_name("asymlora")
    seconds: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([program, *argv], capture_output=True, text=True, check=False, env=dict(os.environ))
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: asymlora")
    assert min(seconds) < 1.0


def test_resume_of_a_mistyped_folder_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--output", "runs/tpyo", "--resume"]) == 2
    assert "There is no run in runs/tpyo to go on with" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
