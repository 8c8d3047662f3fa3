"""A Hugging Face hub of one's own: what huggingface_hub asks of the real one for a public data set.

GET  /api/datasets/<owner>/<name>/revision/<revision>   the commit, and the names of the files
HEAD /datasets/<owner>/<name>/resolve/<commit>/<file>   size, checksum and commit of a file
GET  the same                                           its content
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """Data sets by name, each a dictionary of files; and what the server has been asked for."""

    files: dict[str, dict[str, bytes]]
    commits: dict[str, str]  # by name
    branches: tuple[str, ...] = ("main",)
    asked: list[str] = field(default_factory=list)  # "METHOD path"
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Nothing on the screen."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/([^/?]+).*", self.path):
            self.say_commit(*found.groups())
        elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+).*", self.path):
            self.say_file(*found.groups())
        else:
            self.reply(404, b"", {})

    def say_commit(self, name: str, revision: str) -> None:
        if name not in self.hub.files:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*self.hub.branches, self.hub.commits[name]):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [{"rfilename": file} for file in self.hub.files[name]]
            info = {"id": name, "sha": self.hub.commits[name], "siblings": siblings, "private": False}
            info |= {"downloads": 0, "likes": 0, "tags": [], "disabled": False, "gated": False}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def say_file(self, name: str, commit: str, file: str) -> None:
        content = self.hub.files.get(name, {}).get(file)
        if content is None or commit != self.hub.commits[name]:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        self.reply(200, content, headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def start(hub: Hub) -> ThreadingHTTPServer:
    """The server, on a free port of this machine; `hub.address` is its address."""
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
