"""`imprint doctor` against a hub on loopback: the table, the download, and the commit that it writes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from imprint.cli import app
from imprint.core.params import load_params
from imprint.core.sources import find_cached, list_weights
from imprint.models import PRESETS
from imprint.models.pretrained import load_pretrained
from tests.published_weights import write_base, write_dinov2

ROOT = Path(__file__).resolve().parents[1]
COMMITS = {"studio/base": "a" * 39 + "1", "studio/dinov2": "b" * 39 + "2"}


class Hub(BaseHTTPRequestHandler):
    """The three answers of a hub that a snapshot needs: a repository's commit and files, and the files."""

    root: Path
    served: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, is_tree = "/".join(parts[2:4]), "tree" in parts
            found = self.list_files(name) if is_tree else {"id": name, "sha": COMMITS.get(name)}
            return self.send(json.dumps(found).encode() if name in COMMITS else None, {}, body=body)
        if len(parts) < 5:
            return self.send(b"", {}, body=body)
        name, commit, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        path = self.root / name / file
        data = path.read_bytes() if commit == COMMITS.get(name) and path.is_file() else None
        if body and data is not None:
            self.served.append(f"{name}/{file}")
        digest = hashlib.sha256(data or b"").hexdigest()
        self.send(data, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, body=body)

    def list_files(self, name: str) -> list[dict[str, object]]:
        folder = self.root / name
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return [{"type": "file", "path": key, "size": path.stat().st_size, "oid": "0"} for key, path in files.items()]

    def send(self, data: bytes | None, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(404 if data is None else 200)
        for key, value in {**headers, "Content-Length": str(len(data or b""))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and data:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub with two repositories, one of them with a pickle beside the safetensors; the list of what it handed out."""
    root = tmp_path / "hub"
    write_base(root / "studio" / "base")
    (root / "studio" / "base" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    write_dinov2(root / "studio" / "dinov2")
    served: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"root": root, "served": served}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    named = 'base: studio/base, base_revision: "", backbone: studio/dinov2, backbone_revision: ""'
    overlay = f"# keep me\npretrain_encoder:\n  preset: sd15-tiny\n  weights: {{{named}}}  # and me\n"
    (root / "mine.yaml").write_text(overlay)
    monkeypatch.chdir(root)
    return root


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.stdout.split()), result.stderr


def test_the_commit_is_looked_up_fetched_and_written(hub: list[str], project: Path) -> None:
    before = (project / "mine.yaml").read_text()
    code, text, _ = run("--params", "mine.yaml")
    assert code == 0
    assert "studio/base is not here" in text
    assert (project / "mine.yaml").read_text() == before, "without --download nothing is written"
    assert run("--params", "mine.yaml", "--download")[0] == 0
    after = (project / "mine.yaml").read_text()
    expected = before
    for kind, name in (("base", "studio/base"), ("backbone", "studio/dinov2")):
        expected = expected.replace(f'{kind}_revision: ""', f'{kind}_revision: "{COMMITS[name]}"')
    assert after == expected, "the commits, and nothing else of the file"
    assert not [name for name in hub if name.endswith(".bin")], "no pickle is even fetched"
    sources = list_weights(load_params("params.yaml", "mine.yaml").pretrain_encoder.weights)
    assert all(find_cached(source, project) for source in sources.values())
    model = load_pretrained(PRESETS["sd15-tiny"], sources, seed=0, root=project)
    assert model.unet.config["cross_attention_dim"] == 32


def test_what_the_hub_does_not_have_gets_one_line(hub: list[str], project: Path) -> None:
    overlay = project / "mine.yaml"
    overlay.write_text(overlay.read_text().replace("studio/base", "studio/absent"))
    before = overlay.read_text()
    code, _, error = run("--params", "mine.yaml", "--download")
    assert code == 2
    assert error.startswith("doctor: weights.base: studio/absent cannot be fetched from the hub (")
    assert error.count("\n") == 1
    assert overlay.read_text() == before


def test_without_a_hub_it_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, text, _ = run("--params", "mine.yaml")
    assert code == 0
    assert "does not answer" in text
    code, _, error = run("--params", "mine.yaml", "--download")
    assert (code, error.count("\n")) == (2, 1)
    assert "put its files in a folder and name that" in error
