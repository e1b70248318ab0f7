"""A Hugging Face Hub of folders on this machine: the part of its HTTP interface that fetching a model uses."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder`/ORG/NAME as repositories; yields the endpoint, and the list of files that are fetched from it."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0].strip("/")
            if path.startswith("api/models/"):
                repository, _, rest = path.removeprefix("api/models/").partition(
                    "/tree/" if "/tree/" in path else "/revision/"
                )
                root = folder / repository
                if not root.is_dir():
                    return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                files = sorted(file for file in root.rglob("*") if file.is_file())
                names = [file.relative_to(root).as_posix() for file in files]
                tree = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": sha1(file)}
                        for name, file in zip(names, files, strict=True)]  # fmt: skip
                info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.send(200, json.dumps(tree if "/tree/" in path else info).encode(), {}, body)
            repository, _, rest = path.partition("/resolve/")
            file = folder / repository / rest.partition("/")[2]
            if not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            if body:
                fetched.append(rest.partition("/")[2])
            return self.send(200, file.read_bytes(), {"ETag": f'"{sha1(file)}"', "X-Repo-Commit": COMMIT}, body)

        def send(self, status, content, headers, body):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha1(file: Path) -> str:
    """The digits that name a file's content."""
    return hashlib.sha1(file.read_bytes()).hexdigest()
