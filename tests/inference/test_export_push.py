"""`export --push`, against a server of this test in place of the Hub: what is sent, and what comes of refusals."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from tests.support.trained import NARROW, fails, ok, ok_json, write_images, write_model


class Hub(BaseHTTPRequestHandler):
    """The calls of an upload: a repository is made, files are announced, a commit holds them."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer({"error": "no such repository"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server
        hub.calls.append((self.path, self.headers["Authorization"], body))
        status = hub.statuses.get(self.path, 200)
        if status != 200:
            self._answer({"error": "no right to write here"}, status)
        elif self.path == "/api/repos/create":
            name = json.loads(body)
            full = "/".join(filter(None, (name.get("organization"), name["name"])))
            self._answer({"url": f"{hub.address}/{full}", "name": full, "id": "1"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [each["path"] for each in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
        elif "/commit/" in self.path:
            self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.address}/them/small-kl/commit/0"})
        else:
            self._answer({"error": f"unexpected {self.path}"}, 404)

    def _answer(self, document, status=200):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.statuses = [], {}
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", ["a", "b"], 32, 32)
    write_model(tmp_path / "kl.safetensors", "kl", **NARROW)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


EXPORT = ["export", "--model", "kl.safetensors", "--data", "images", "--out", "out", "--format", "diffusers"]
PUSH = [*EXPORT, "--push", "hf:them/small-kl"]


def test_what_was_written_is_sent_and_nothing_else(hub, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/private.txt").write_text("mine")
    found = ok_json(*PUSH, "--overwrite")
    assert found["url"] == f"{hub.address}/them/small-kl"
    paths = [path for path, *_ in hub.calls]
    assert paths[0] == "/api/repos/create" and paths[-1] == "/api/models/them/small-kl/commit/main"
    assert {authorization for _, authorization, _ in hub.calls} == {"Bearer hf_secret"}
    lines = [json.loads(line) for line in hub.calls[-1][2].splitlines()]
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines
            if line["key"] == "file"}  # fmt: skip
    assert sent == {name: (tmp_path / "out" / name).read_bytes() for name in found["files"]}
    assert set(sent) == {"config.json", "diffusion_pytorch_model.safetensors", "README.md"}
    assert lines[0]["value"]["summary"].startswith("Export by aecli")


def test_nothing_is_sent_without_the_flag(hub):
    ok(*EXPORT)
    assert hub.calls == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_one_line_and_a_hint_and_the_folder_stays(hub, tmp_path, status):
    hub.statuses["/api/repos/create"] = status
    message = fails(1, *PUSH)
    assert "--push hf:them/small-kl" in message and "hf auth login" in message and "hf_secret" not in message
    assert (tmp_path / "out/config.json").exists()


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "--push hf:them/small-kl" in fails(1, *PUSH)


def test_without_a_token_nothing_is_begun(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in fails(1, *PUSH)
    assert hub.calls == [] and not (tmp_path / "out").exists()
