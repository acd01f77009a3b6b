"""Attacks on a served node that go on until they are ended, each from a process of its own.

with attacked(served, "questions") as attack:
    …                       # it is under way, and goes on
    assert attack.goes_on()
"""

import itertools
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kit.feasibility_questions import question
from kit.hospital import Hospital, await_that
from kit.places import ROOT, TESTS
from kit.served_node import Served
from vht_federate.domain.law import ActorKind
from vht_federate.domain.permit import DataUser
from vht_federate.domain.plan import StudyPlan, TrainingPlan
from vht_federate.signing.keys import SigningKey

__all__ = ["ATTACKS", "Attack", "attacked"]


@dataclass(frozen=True)
class Target:
    """What an attacker has: the node's addresses, a permit, a data user's key, a path to an enclave (or none)."""

    outward: str
    internal: str
    ca: str
    permit: str
    key: str
    enclave: str | None

    @property
    def user(self) -> SigningKey:
        return SigningKey.read(Path(self.key))


@dataclass
class Attack:
    name: str
    process: subprocess.Popen[str]
    count: int = 0

    def goes_on(self) -> bool:
        """Whether something more of it happens."""
        before = self.count
        await_that(lambda: self.count > before or self.process.poll() is not None, 120)
        return self.process.poll() is None

    def follow(self) -> None:
        assert self.process.stdout is not None
        for _ in self.process.stdout:
            self.count += 1


@contextmanager
def attacked(served: Served, name: str, enclave: Path | None = None) -> Iterator[Attack]:
    """``name`` of ATTACKS, under way before the block begins."""
    hospital, settings = served.hospital, served.settings
    key = hospital.root / "attacker.key"
    user = SigningKey.read(key) if key.exists() else SigningKey.create(key)
    permit = hospital.permit(data_users=(DataUser(name="Attacker", kind=ActorKind.ACADEMIC, kid=user.public.kid),))
    place = str(enclave) if enclave else None
    target = Target(settings.outward_url, settings.internal_url, str(settings.ca), permit, str(key), place)
    paths = f"import sys; sys.path[:0] = {[str(TESTS), str(ROOT)]!r}; from kit.node_attacks import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", paths, name, json.dumps(asdict(target))], stdout=subprocess.PIPE, text=True
    )
    attack = Attack(name, process)
    follower = threading.Thread(target=attack.follow)
    follower.start()
    try:
        await_that(lambda: attack.count >= 3 or process.poll() is not None, 300)
        assert process.poll() is None, f"{name} did not begin"
        yield attack
    finally:
        process.kill()
        process.wait()
        follower.join(60)
        if process.stdout is not None:
            process.stdout.close()


def _post(target: Target, client: Any, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
    with suppress(Exception):  # refused, or dropped: the attack goes on
        body = {"permit": target.permit, "user_key": target.user.public.jwk(), **body}
        client.post(path, json=body, headers=headers)


def _signer(target: Target) -> Hospital:
    """Signs what a data user and their coordinator ask of that hospital, of which an attacker has nothing."""
    nothing: Any = None
    return Hospital(Path(), nothing, nothing, Path(), user=target.user)


def _plan(number: int) -> StudyPlan:
    """Every second plan has ten million steps; the others are about as costly as a plan may be, each its own noise."""
    rounds, steps, rate, noise = (1000, 10_000, 0.5, 1000.0) if number % 2 else (10, 10, 0.01, 0.6)
    training = TrainingPlan(
        rounds=rounds, local_steps=steps, sampling_rate=rate, clipping_norm=1.0,
        noise_multiplier=noise + (number % 10_000) * 1e-6, learning_rate=0.1,
    )  # fmt: skip
    return StudyPlan(delta=1e-5, training=training)


Act = Callable[[Target, Any, int], None]


def _plans(target: Target, client: Any, number: int) -> None:
    signer = _signer(target)
    study = signer.study(study_id=f"attack-{number}", plan=_plan(number))
    _post(target, client, "/visits", {"study": study}, signer.headers())


def _questions(target: Target, client: Any, number: int) -> None:
    _post(
        target,
        client,
        "/feasibility",
        {"question": question(_signer(target), title=f"{number} {time.time()}", epsilon=0.01)},
    )


def _replay(target: Target, client: Any, number: int) -> None:
    _post(target, client, "/feasibility", {"question": _REPLAYED[0]})


def _passwords(target: Target, client: Any, number: int) -> None:
    with suppress(Exception):
        client.post(f"{target.internal}/login", data={"name": "Dr Ada", "password": "wrong horse!"})


def _bodies(target: Target, client: Any, number: int) -> None:
    """A chunked body that claims a length, then one that trickles in, each on a connection of its own."""
    address = urlsplit(target.outward)
    context = ssl.create_default_context(cafile=target.ca)
    with (
        suppress(OSError),
        socket.create_connection((str(address.hostname), address.port or 443), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=address.hostname) as connection,
    ):
        claims = b"Content-Length: 100\r\n" if number % 2 else b""
        connection.sendall(b"POST /visits HTTP/1.1\r\nHost: x\r\n" + claims + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000 if number % 2 else 10):
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
            time.sleep(0 if number % 2 else 0.2)


def _silent(target: Target, client: Any, number: int) -> None:
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(target.enclave))
        connection.settimeout(1.0)
        connection.recv(1)


ATTACKS: dict[str, tuple[Act, int]] = {  # and from how many threads
    "silent": (_silent, 30),
    "plans": (_plans, 6),
    "replay": (_replay, 4),
    "bodies": (_bodies, 20),
    "passwords": (_passwords, 8),
    "questions": (_questions, 60),
}
_REPLAYED: list[str] = []


def main() -> None:
    """``NAME TARGET``: attack until killed, a line on stdout for each time that something came to its end."""
    import httpx

    (act, threads), target = ATTACKS[sys.argv[1]], Target(**json.loads(sys.argv[2]))
    _REPLAYED.append(question(_signer(target), epsilon=5.0))
    client = httpx.Client(
        base_url=target.outward,
        verify=ssl.create_default_context(cafile=target.ca),
        timeout=300,
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    )
    numbers = itertools.count()

    def go_on() -> None:
        while True:
            act(target, client, next(numbers))
            time.sleep(0.01)
            sys.stdout.write(".\n")
            sys.stdout.flush()

    for _ in range(threads):
        threading.Thread(target=go_on, daemon=True).start()
    threading.Event().wait()
