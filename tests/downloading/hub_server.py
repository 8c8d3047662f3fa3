"""A Hugging Face hub of one's own: what huggingface_hub asks of the real one for a public data set.

GET  /api/datasets/<owner>/<name>/revision/<revision>   the commit
HEAD /datasets/<owner>/<name>/resolve/<commit>/<file>   size, checksum and commit of a file
GET  the same                                           its content
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = re.compile(r"(?:/api)?/datasets/([^/]+/[^/]+)/(?:revision|resolve)/([^/?]+)/?([^/?]*).*")


class Hub(ThreadingHTTPServer):
    """The server, on a free port of this machine. files: of each data set, by name. commits: by data set."""

    def __init__(self, files: dict[str, dict[str, bytes]], commits: dict[str, str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.commits = commits
        self.asked: list[str] = []  # paths
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_) -> None:
        """Nothing on the screen."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name, revision, file = PATH.fullmatch(self.path).groups()
        commit = self.server.commits[name]
        if revision not in ("main", commit):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif not file:
            self.reply(200, json.dumps({"id": name, "sha": commit}).encode(), {})
        elif file in self.server.files[name]:
            content = self.server.files[name][file]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.reply(200, content, {"ETag": etag, "X-Repo-Commit": commit})
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
