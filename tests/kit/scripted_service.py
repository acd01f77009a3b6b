"""A service over TLS on loopback that gives prepared answers, one by one."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deploy.pki import issue_certificate, make_authority
from vht_federate.errors import VhtError

__all__ = ["ScriptedService", "served"]


@dataclass
class ScriptedService:
    """``answers``: by path, what is sent one after the other, the last for ever: JSON, text, or a typed error."""

    url: str
    ca: Path
    answers: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    proofs: list[str | None] = field(default_factory=list)

    def next_answer(self, path: str) -> Any:
        answers = self.answers[path]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def served(folder: Path) -> Iterator[ScriptedService]:
    now = datetime.now(UTC)
    make_authority(folder, now=now)
    tls = issue_certificate(folder, "service", folder / "service", now=now)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.key)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer()

        def _answer(self) -> None:
            service.asked.append(self.path)
            service.proofs.append(self.headers["DPoP"])
            answer, status, headers = service.next_answer(self.path), 200, dict[str, str]()
            if isinstance(answer, VhtError):
                answer, status, headers = {"error": answer.envelope()}, answer.http_status, answer.headers()
            body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    service = ScriptedService(f"https://127.0.0.1:{server.server_address[1]}", tls.ca)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
