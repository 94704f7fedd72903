"""The real client of the hub, against a small hub on this machine or an address that does not answer."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

from asymlora.errors import DataNotFoundError
from asymlora.tasks import hub
from asymlora.tasks.inputs import DataRecipe
from asymlora.tasks.sources import find_model, load_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = 'text,label\n"warm, fine",fresh\ndull,rotten\n'


class SmallHub(ThreadingHTTPServer):
    """What the hub's client asks of it, for files held in memory: ``models/owner/name`` -> path -> content."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories = repositories
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: SmallHub

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        _, _, kind, owner, name, *_ = urlsplit(self.path).path.split("/")
        files = self.server.repositories.get(f"{kind}/{owner}/{name}", {})
        self._send(json.dumps([self._entry(p, c) for p, c in files.items() if p in unquote(asked)]).encode())

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path.lstrip("/")
        self.server.asked.append(path)
        if path.startswith("api/"):
            self._api(*path.split("/")[1:5])
            return
        if not path.startswith("datasets/"):
            path = f"models/{path}"
        kind, owner, name, _, _, *rest = path.split("/")
        content = self.server.repositories.get(f"{kind}/{owner}/{name}", {}).get("/".join(rest))
        self._send(content, with_body=with_body)

    def _api(self, kind: str, owner: str, name: str, what: str = "") -> None:
        files = self.server.repositories.get(f"{kind}/{owner}/{name}")
        if files is None:
            self._send(None)
        elif what == "tree":
            self._send(json.dumps([self._entry(p, c) for p, c in files.items()]).encode())
        else:
            siblings = [{"rfilename": path} for path in files]
            info = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}
            self._send(json.dumps({**info, "downloads": 0, "likes": 0, "tags": []}).encode())

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _send(self, content: bytes | None, *, with_body: bool = True) -> None:
        body = content if content is not None else b"{}"
        self.send_response(200 if content is not None else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def small_hub(small_encoder: Path) -> Iterator[SmallHub]:
    """A hub with a small model and a data set."""
    model = {file.name: file.read_bytes() for file in small_encoder.iterdir()}
    server = SmallHub({"models/owner/small": model, "datasets/owner/films": {"train.csv": ROWS.encode()}})
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


LOADS = """
import json, sys, time
import huggingface_hub
from asymlora.tasks.inputs import DataRecipe, ModelRecipe
from asymlora.tasks.sources import find_model, load_table
import datasets, transformers
begin = time.perf_counter()
where, folder = find_model("owner/small", revision=None)
model_s = time.perf_counter() - begin
options = {"local_files_only": True} if folder else {}
model = transformers.AutoModel.from_pretrained(where, **options)
tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
begin = time.perf_counter()
rows = load_table(DataRecipe(name="owner/films")).parts["train"]
data_s = time.perf_counter() - begin
total = sum(p.detach().double().sum().item() for p in model.parameters())
print(json.dumps([where, folder is not None, total, tokenizer("a film")["input_ids"], rows, model_s, data_s]))
"""


def _in_a_process(code: str, endpoint: str, home: Path, **variables: str) -> Any:
    silent = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **silent, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


FINDS = """
import json, time, huggingface_hub
from asymlora.tasks.sources import find_model
begin = time.perf_counter()
where, folder = find_model("owner/small", revision=None)
took = time.perf_counter() - begin
file = folder / "config.json" if folder else huggingface_hub.hf_hub_download(where, "config.json")
print(json.dumps([where, folder and str(folder), open(file).read(), took]))
"""


def test_file_of_a_model_comes_from_the_hub_and_later_from_the_cache_without_it(
    small_hub: SmallHub, small_encoder: Path, tmp_path: Path
) -> None:
    config = (small_encoder / "config.json").read_text()
    assert _in_a_process(FINDS, small_hub.endpoint, tmp_path)[:3] == ["owner/small", None, config]
    small_hub.shutdown()
    small_hub.server_close()
    where, folder, content, took = _in_a_process(FINDS, small_hub.endpoint, tmp_path)
    assert (where, content) == (folder, config)
    assert Path(where).is_relative_to(tmp_path)
    assert took < 2


@pytest.mark.optional  # half a minute: transformers and datasets, imported in two processes
def test_model_and_data_come_from_the_hub_and_later_from_the_cache_without_it(
    small_hub: SmallHub, small_encoder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(small_encoder)
    total = sum(p.detach().double().sum().item() for p in model.parameters())
    rows = {"text": ["warm, fine", "dull"], "label": ["fresh", "rotten"]}
    where, is_local, got, ids, table, *_ = _in_a_process(LOADS, small_hub.endpoint, tmp_path)
    assert (where, is_local, got, table) == ("owner/small", False, pytest.approx(total), rows)
    assert any(path.endswith("model.safetensors") for path in small_hub.asked)
    small_hub.shutdown()
    small_hub.server_close()
    where, is_local, got, same, table, model_s, data_s = _in_a_process(LOADS, small_hub.endpoint, tmp_path)
    assert (is_local, got, same, table) == (True, pytest.approx(total), ids, rows)
    assert Path(where).is_relative_to(tmp_path)
    assert model_s < 2
    assert data_s < 2


# --- whether it is there -------------------------------------------------------------------------------------------

Point = Callable[[str], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Point:
    """Set the hub's address, with the network allowed, no proxy and nothing downloaded."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return lambda endpoint: monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)


@pytest.fixture
def closed() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_hub_that_listens_is_reachable_and_one_that_does_not_is_not(
    at: Point, closed: str, small_hub: SmallHub
) -> None:
    at(small_hub.endpoint)
    assert hub.is_reachable()
    at(closed)
    assert not hub.is_reachable()


def test_forbidden_network_is_no_network(at: Point, small_hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    at(small_hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not hub.is_reachable()
    assert small_hub.asked == []


def test_proxy_counts_as_a_way_unless_the_host_goes_around_it(
    at: Point, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(closed)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub.is_reachable()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not hub.is_reachable()


def _never_connects(*_: object, **__: object) -> None:
    time.sleep(4)
    raise OSError("the name server gave up")


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "no answer at all"])
@pytest.mark.parametrize("ask", [find_model, lambda name: load_table(DataRecipe(name=name))], ids=["model", "data"])
def test_unreachable_hub_is_told_within_two_seconds(
    at: Point, closed: str, silent: bool, ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.packaged_modules.cache.cache  # noqa: F401  so that the clock does not count the import

    at(closed)
    if silent:  # a name server that is out of reach: the look-up itself has no limit
        monkeypatch.setattr(socket, "create_connection", _never_connects)
    begin = time.perf_counter()
    with pytest.raises(DataNotFoundError) as caught:
        ask("owner/nothing")
    assert time.perf_counter() - begin < 2
    message = str(caught.value)
    assert "There is no folder or file called 'owner/nothing' here" in message
    assert "hub cannot be reached (no answer within 1 s)" in message
    assert "embedded:" in message


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """An earlier download of a model's main branch, as the hub's client keeps it."""
    kept = tmp_path / "models--owner--small"
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    (kept / "snapshots" / COMMIT / "config.json").write_text("{}")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    return kept / "snapshots" / COMMIT


def test_without_a_network_an_earlier_download_of_the_revision_is_given(
    at: Point, closed: str, downloaded: Path
) -> None:
    at(closed)
    for revision in (None, "main", COMMIT):
        assert find_model("owner/small", revision=revision) == (str(downloaded), downloaded)
    # Another revision must never pass for the one asked for.
    with pytest.raises(DataNotFoundError, match="hub cannot be reached"):
        find_model("owner/small", revision="v2")


def test_download_is_left_to_the_client_where_the_revision_is_not_told(
    at: Point, closed: str, downloaded: Path
) -> None:
    at(closed)
    assert downloaded.is_dir()
    assert find_model("owner/small") == ("owner/small", None)


def test_download_is_left_to_the_client_that_is_told_to_be_offline(
    at: Point, closed: str, downloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(closed)
    assert downloaded.is_dir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_model("owner/small", revision="v2") == ("owner/small", None)


def test_forbidden_network_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="HF_HUB_OFFLINE forbids it"):
        find_model("owner/nothing")


@pytest.mark.parametrize("name", ["modle/", "./modle", "runs/first/modle"])
def test_mistyped_folder_never_asks_the_hub(at: Point, small_hub: SmallHub, name: str) -> None:
    at(small_hub.endpoint)
    with pytest.raises(DataNotFoundError, match=f"There is no model folder at {name}"):
        find_model(name)
    assert small_hub.asked == []
