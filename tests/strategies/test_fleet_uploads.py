"""What strangers send to the gateway is small; what hospitals send is bounded together, and by each key."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Request
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from kit.hostile_table import Answered

from strategies import fleet_uploads
from strategies.fleet_uploads import ANYBODY, MAX_BODY_BYTES, UNCOUNTED, FleetUploads
from vht_federate.errors import VhtError

MIB = 1 << 20


def signed(key: ec.EllipticCurvePrivateKey, *, age_s: float = 0.0) -> dict[str, str]:
    """The headers that Flower's SuperNode sends."""
    at = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-timestamp": at,
        "flwr-signature": b64encode(sign_message(key, at.encode())).decode(),
    }


class Upload:
    """A request whose body comes in pieces of 64 KiB; ``read`` is how much of it was taken."""

    def __init__(self, size: int, headers: dict[str, str], *, length: int | None = None, chunked: bool = False) -> None:
        self.read, self._size = 0, size
        named = {} if chunked else {"content-length": str(size if length is None else length)}
        raw = [(name.encode(), value.encode()) for name, value in {**headers, **named}.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": b""}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> dict[str, Any]:
        piece = min(64 << 10, self._size - self.read)
        self.read += piece
        return {"type": "http.request", "body": b"x" * piece, "more_body": self.read < self._size}


async def held(uploads: FleetUploads, upload: Upload, within: AsyncExitStack | None = None) -> str:
    """ "held", or the code of the refusal."""
    async with AsyncExitStack() as own:
        try:
            body = await (within or own).enter_async_context(uploads.body(upload.request, lambda: None))
        except VhtError as error:
            return error.code
        assert len(body) == upload.read
        return "held"


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@pytest.mark.hostile("gateway")
@pytest.mark.parametrize("chunked", [True, False])
def test_a_stranger_sends_little_and_no_more_is_read(
    chunked: bool, key: ec.EllipticCurvePrivateKey, answered: Answered
) -> None:
    uploads = FleetUploads()
    for headers in ({}, signed(key)):  # a signature of a key that was never accepted is a stranger's
        upload = Upload(256 * MIB, headers, chunked=chunked)
        assert asyncio.run(held(uploads, upload)) == "VHT-INPUT-SIZE"
        assert upload.read <= 2 * ANYBODY
    assert asyncio.run(held(uploads, Upload(ANYBODY, {}))) == "held"
    answered("VHT-INPUT-SIZE")


@pytest.mark.hostile("gateway", control=True)
def test_control_without_those_bounds_the_gateway_holds_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_uploads, "ANYBODY", MAX_BODY_BYTES)
    upload = Upload(100 * MIB, {}, chunked=True)
    assert asyncio.run(held(FleetUploads(of_strangers=MAX_BODY_BYTES), upload)) == "held"
    assert upload.read == 100 * MIB


def test_a_key_that_the_superlink_accepted_sends_a_reply(key: ec.EllipticCurvePrivateKey) -> None:
    uploads = FleetUploads()
    uploads.accepted(signed(key))
    assert asyncio.run(held(uploads, Upload(MIB, signed(key)))) == "held"
    assert asyncio.run(held(uploads, Upload(MIB, signed(key), chunked=True))) == "held"
    assert asyncio.run(held(uploads, Upload(1, signed(key), length=MAX_BODY_BYTES + 1))) == "VHT-INPUT-SIZE"
    forged = {**signed(key), "flwr-signature": signed(ec.generate_private_key(ec.SECP384R1()))["flwr-signature"]}
    for headers in (forged, signed(key, age_s=3600), {"flwr-public-key": signed(key)["flwr-public-key"]}):
        assert asyncio.run(held(uploads, Upload(MIB, headers))) == "VHT-INPUT-SIZE"


def test_what_all_hold_together_is_bounded_and_given_back(key: ec.EllipticCurvePrivateKey) -> None:
    async def played() -> list[str]:
        uploads, results = FleetUploads(together=8 * MIB, of_strangers=100_000), []
        uploads.accepted(signed(key))
        async with AsyncExitStack() as holding:
            results += [await held(uploads, Upload(MIB, signed(key)), holding) for _ in range(3)]
            for _ in range(2):
                other = ec.generate_private_key(ec.SECP384R1())
                uploads.accepted(signed(other))
                results.append(await held(uploads, Upload(MIB, signed(other)), holding))
            results += [await held(uploads, Upload(ANYBODY, {}), holding) for _ in range(2)]
            results.append(await held(uploads, Upload(UNCOUNTED, {})))  # a question for messages still passes
        results.append(await held(uploads, Upload(MIB, signed(key))))
        return results

    full = "VHT-UNAVAILABLE-UPLOADS"
    assert asyncio.run(played()) == ["held", "held", full, "held", "held", "held", full, "held", "held"]


def test_what_strangers_hold_takes_no_room_from_a_hospitals_small_uploads(key: ec.EllipticCurvePrivateKey) -> None:
    async def played() -> list[str]:
        uploads, results = FleetUploads(of_strangers=ANYBODY), []
        uploads.accepted(signed(key))
        async with AsyncExitStack() as holding:
            results += [await held(uploads, Upload(ANYBODY, {}), holding) for _ in range(2)]
            for size in (UNCOUNTED, UNCOUNTED + 1, ANYBODY):
                results += [await held(uploads, Upload(size, signed(key), chunked=way)) for way in (True, False)]
        return results

    assert asyncio.run(played()) == ["held", "VHT-UNAVAILABLE-UPLOADS", *["held"] * 6]


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_uploads, "PATIENCE_S", 0.05)

    async def never() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": b"x", "more_body": True}
        await asyncio.Event().wait()

    async def played() -> str:
        upload, messages = Upload(10, {}), never()
        upload.request = Request(upload.request.scope, lambda: anext(messages))
        return await held(FleetUploads(), upload)

    assert asyncio.run(played()) == "VHT-UNAVAILABLE-SLOW"
