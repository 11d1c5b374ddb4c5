"""A Hub of one dataset on 127.0.0.1, with as much of its interface as the datasets library asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

_SHA = "a" * 40
_MISSING = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _SHA}


@contextmanager
def hub(name: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """The address, as HF_ENDPOINT has it, of a Hub that has the dataset `name` with these files and no other."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, code: int, content: bytes = b"{}", **headers: str) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = urlparse(self.path).path
            if path.startswith(resolved := f"/datasets/{name}/resolve/"):
                file = path.removeprefix(resolved).partition("/")[2]
                if file not in files:
                    self.answer(404, **_MISSING)
                    return
                tag = {"ETag": f'"{len(files[file])}-{file.replace("/", "-")}"', "X-Repo-Commit": _SHA}
                self.answer(200, files[file], **tag)
            elif path.startswith(tree := f"/api/datasets/{name}/tree/"):
                self.answer(200, json.dumps(_level(files, path.removeprefix(tree).partition("/")[2])).encode())
            elif path.startswith(f"/api/datasets/{name}"):
                about = {"_id": "0", "id": name, "sha": _SHA, "private": False, "tags": []}
                self.answer(200, json.dumps({**about, "siblings": [{"rfilename": file} for file in files]}).encode())
            else:
                self.answer(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _level(files: Mapping[str, bytes], folder: str) -> list[dict[str, object]]:
    """What lies in a folder, files and folders."""
    below = {file.removeprefix(f"{folder}/" if folder else ""): file for file in files if file.startswith(folder)}
    here = [
        {"type": "file", "path": file, "size": len(files[file]), "oid": "b" * 40}
        for name, file in below.items()
        if "/" not in name
    ]
    folders = sorted({name.partition("/")[0] for name in below if "/" in name})
    prefix = f"{folder}/" if folder else ""
    return [*here, *({"type": "directory", "path": prefix + name, "oid": "c" * 40} for name in folders)]
