"""Models on the Hugging Face hub: the real huggingface_hub against a hub of this machine, which keeps what it gets.

huggingface_hub reads its endpoint when it is imported, so whatever asks the hub runs in a process of its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vqkit
from vqkit.models import VQVAE, ModelConfig, Patchwise

TOKEN = "hf_of_this_test"
CONFIG = ModelConfig(
    channels=1,
    architecture=Patchwise(hidden=6),
    dim=3,
    codebook_size=8,
    update=vqkit.EMA(decay=1 / 3),
    start=vqkit.Normal(),
)
needs_hub = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed: vqkit[hub]"
)


class Hub(ThreadingHTTPServer):
    """Repositories: their commits, each a dictionary of files. As on the real hub, weights go by LFS."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(name, {})
        before = list(commits.values())[-1] if commits else {}
        commit = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits[commit] = before | files
        return commit


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, entries: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(entries).encode(), Content_Type="application/json")

    def log_message(self, format: str, *arguments: Any) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        match = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/([\w.]+)", self.path)
        if match is None:
            return self.reply(404)
        name, revision, file = match.groups()
        if name == "user/dying":  # the line goes dead in the middle of a conversation
            self.close_connection = True
            return None
        commits = self.server.repositories.get(name)
        if commits is None:
            return self.reply(401, X_Error_Code="RepoNotFound")
        commit = list(commits)[-1] if revision == "main" else revision
        if name == "user/busy" and revision == "main":  # somebody pushes all the while
            self.server.commit(name, {"README.md": str(len(commits)).encode()})
        if commit not in commits:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if file not in commits[commit]:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = commits[commit][file]
        return self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)

    do_GET = do_HEAD

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != f"/large/{hashlib.sha256(content).hexdigest()}":
            return self.reply(400)
        self.server.large[self.path.removeprefix("/large/")] = content
        return self.reply(200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != "user":
                return self.json({"error": "You don't have the rights to create a model under this namespace"}, 403)
            self.server.repositories.setdefault(name, {})
            self.server.asked.append(f"{name} is {wanted.get('visibility')}")
            return self.json({"url": f"{self.server.endpoint}/{name}"})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.server.endpoint}/large/{entry['oid']}"}}
            return self.json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/\w+/\w+/preupload/\w+", self.path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.json({"files": files})
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/commit/\w+", self.path):
            files = {}
            for key, value in (json.loads(line).values() for line in body.splitlines()):
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"], validate=True)
                elif key == "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
            commit = self.server.commit(match[1], files)
            url = f"{self.server.endpoint}/{match[1]}/commit/{commit}"
            return self.json({"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})
        return self.reply(404)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in it, and images, where the hub's users work."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = CONFIG.build(seed=0)
    model.save_pretrained(folder / "run")
    images = torch.rand(2, 1, 24, 8)
    save_file({"images": images, "indices": model.eval().encode(images)}, folder / "images.safetensors")
    return folder


def run(folder: Path, endpoint: str, code: str) -> dict[str, Any]:
    """What ``code`` leaves in ``told``, and its stderr: a program of its own, which works in ``folder``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # the newer way of large files, for which this hub is too simple
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
        "PYTHONPATH": str(Path(vqkit.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{START}{code}\nprint(json.dumps(told))"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


START = """
import json, os, sys
from safetensors.torch import load_file, save_file
from vqkit.models import VQVAE

told = {}

def attempt(case, act, *arguments, **options):
    try:
        act(*arguments, **options)
        told[case] = "done"
    except Exception as error:
        told[case] = f"{type(error).__name__}: {error}"
"""


@pytest.fixture(scope="module")
def pushed(hub: Hub, folder: Path) -> dict[str, Any]:
    code = """
model = VQVAE.from_pretrained("run")
told["imported"] = "huggingface_hub" in sys.modules
told["url"] = model.push_to_hub("user/name")
model.push_to_hub("user/other", private=True, branch="next")
attempt("others/name", model.push_to_hub, "others/name")
attempt("user/denied", model.push_to_hub, "user/denied", token="hf_of_somebody_else")
"""
    return run(folder, hub.endpoint, code)


@pytest.fixture(scope="module")
def pulled(hub: Hub, folder: Path, pushed: dict[str, Any]) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    newer = json.loads(files["config.json"]) | {"format": 2}
    hub.commit("user/newer", files | {"config.json": json.dumps(newer).encode()})
    hub.commit("user/busy", files)
    hub.commit("user/bare", {"README.md": b"nothing yet"})
    hub.commit("user/weightless", {"config.json": files["config.json"]})
    hub.commit("user/broken", files | {"model.safetensors": files["model.safetensors"][:-1]})
    for number, text in enumerate((b"[1]", b"\xff{", b"{", b"null", b'{"self": 1, "content": 2}')):
        hub.commit(f"user/foreign{number}", files | {"config.json": text})
    code = """
model = VQVAE.from_pretrained("user/name")
save_file(model.state_dict(), "pulled.safetensors")
told["indices"] = model.encode(load_file("images.safetensors")["images"]).tolist()
told["training"], told["config"] = model.training, repr(model.config)
for name in ("newer", "bare", "weightless", "broken", "nobody", "dying", *(f"foreign{i}" for i in range(5))):
    attempt(name, VQVAE.from_pretrained, "user/" + name)
attempt("busy", VQVAE.from_pretrained, "user/busy", cache_dir="cache")
told["cached"] = os.listdir("cache")
attempt("revision", VQVAE.from_pretrained, "user/name", revision="v9")
"""
    return run(folder, hub.endpoint, code)


@needs_hub
def test_pushing(hub: Hub, folder: Path, pushed: dict[str, Any]) -> None:
    assert not pushed["imported"], "a local directory needs no huggingface_hub"
    (commit,) = hub.repositories["user/name"]
    assert pushed["url"] == f"{hub.endpoint}/user/name/commit/{commit}"
    stored = dict(hub.repositories["user/name"][commit])
    card = stored.pop("README.md").decode()
    assert stored == {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    assert "library_name: vqkit" in card and 'VQVAE.from_pretrained("user/name")' in card and repr(CONFIG) in card
    assert list(hub.large.values()) == [stored["model.safetensors"]]
    assert {"user/name is None", "user/other is private"} < set(hub.asked)
    assert {"POST /api/models/user/name/commit/main", "POST /api/models/user/other/commit/next"} < set(hub.asked)


@needs_hub
@pytest.mark.parametrize(("name", "status"), [("others/name", "403"), ("user/denied", "401")])
def test_what_the_hub_does_not_take(hub: Hub, pushed: dict[str, Any], name: str, status: str) -> None:
    assert re.fullmatch(rf"ConnectionError: {name}: .*{status}.*", pushed[name])
    assert name not in hub.repositories


@needs_hub
def test_what_was_pushed_comes_back(folder: Path, pulled: dict[str, Any]) -> None:
    again, original = load_file(folder / "pulled.safetensors"), load_file(folder / "run" / "model.safetensors")
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)
    assert pulled["indices"] == load_file(folder / "images.safetensors")["indices"].tolist()
    assert pulled["config"] == repr(CONFIG) and not pulled["training"]
    assert "user/name is no directory here: asking the Hugging Face hub" in pulled["stderr"]
    assert "Traceback" not in pulled["stderr"]
    assert pulled["busy"] == "done" and "models--user--busy" in pulled["cached"]


@needs_hub
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("newer", "ValueError: user/newer .*is of format 2; .*install a newer one."),
        ("bare", "FileNotFoundError: user/bare .*config.json.*"),
        ("weightless", "FileNotFoundError: user/weightless .*model.safetensors.*"),
        ("broken", "ValueError: user/broken .*model.safetensors is damaged.*"),
        ("nobody", "FileNotFoundError: user/nobody is neither a directory nor .*private.*"),
        ("revision", "FileNotFoundError: user/name .*v9.*"),
        ("dying", "ConnectionError: user/dying: .*disconnected.*"),
        *((f"foreign{number}", f"ValueError: user/foreign{number} .*is no model for.*") for number in range(5)),
    ],
)
def test_what_the_hub_does_not_give(pulled: dict[str, Any], case: str, words: str) -> None:
    assert re.fullmatch(words, pulled[case])  # in one line


@needs_hub
def test_without_a_network(folder: Path, pulled: dict[str, Any]) -> None:
    code = """
attempt("push", VQVAE.from_pretrained("run").push_to_hub, "user/name")
attempt("seen before", VQVAE.from_pretrained, "user/name")
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True  # else it tries again for 23 s, and says so
attempt("unseen", VQVAE.from_pretrained, "user/unseen")
"""
    told = run(folder, "http://127.0.0.1:9", code)  # where nobody listens
    assert re.fullmatch("ConnectionError: user/name: .*refused.*", told["push"])
    assert told["seen before"] == "done"
    assert re.fullmatch("ConnectionError: user/unseen: .*", told["unseen"])


def test_without_huggingface_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # what makes Python refuse the import
    monkeypatch.chdir(folder)
    model = VQVAE.from_pretrained("run")
    for act in (VQVAE.from_pretrained, model.push_to_hub):
        with pytest.raises(ImportError, match=r"user/name is .*pip install 'vqkit\[hub\]'"):
            act("user/name")
    with pytest.raises(ValueError, match=r"repo_id is 'name'.*'user/name'"):
        model.push_to_hub("name")
    with pytest.raises(ValueError, match="composed by hand"):
        VQVAE(model.encoder, model.quantizer, model.decoder).push_to_hub("user/name")


@pytest.mark.parametrize("name", ["runs/3", "./3", "../3", "3", "a/b/c", "/a/b", "~/a", "a b/c", Path("user/name")])
def test_a_mistyped_path_asks_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an ImportError where the hub would be asked
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^{name} is no directory"):
        VQVAE.from_pretrained(name)
    assert not caplog.records


def test_a_path_that_exists_is_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CONFIG.build().save_pretrained("user/name")
    Path("user/file").touch()
    for revision in (None, "main"):
        assert VQVAE.from_pretrained("user/name", revision=revision).config == CONFIG
        with pytest.raises(FileNotFoundError, match="user/file is no directory"):
            VQVAE.from_pretrained("user/file", revision=revision)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"user/none is no directory.*revision='main'"):
        VQVAE.from_pretrained("user/none")
    with pytest.raises(ImportError, match="user/none"):  # a revision says that the hub is meant
        VQVAE.from_pretrained("user/none", revision="main")
