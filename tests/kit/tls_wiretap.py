"""A TLS-ending proxy that records what crosses it, and a search that looks through encodings."""

import asyncio
import base64
import contextlib
import re
import ssl
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from vht_federate.tcp_ports import LOOPBACK, free_port


class Wiretap:
    """Routes connections through recording proxies: ``route`` is the hook that LocalFederation offers."""

    def __init__(self, captures: Path, ca: Path, certificate: Path, key: Path) -> None:
        self.captures = captures
        self._ca, self._certificate, self._key = ca, certificate, key
        self.besides: Collection[int] = ()  # ports that others will bind
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._routes: dict[tuple[str, int], int] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        captures.mkdir(parents=True, exist_ok=True)

    def route(self, name: str, port: int) -> int:
        if (name, port) not in self._routes:
            proxy = free_port(besides=self.besides)
            asyncio.run_coroutine_threadsafe(self._listen(name, port, proxy), self._loop).result(60)
            self._routes[name, port] = proxy
        return self._routes[name, port]

    def taps(self, *names: str) -> set[int]:
        """The ports at which connections to these services are recorded."""
        return {proxy for (name, _), proxy in self._routes.items() if name in names}

    async def _listen(self, name: str, port: int, proxy: int) -> None:
        inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inward.load_cert_chain(self._certificate, self._key)
        outward = ssl.create_default_context(cafile=str(self._ca))

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            self._count += 1
            stem = self.captures / f"{name}-{self._count:05d}"
            try:
                up_reader, up_writer = await asyncio.open_connection(LOOPBACK, port, ssl=outward)
                await asyncio.gather(
                    _copy(reader, up_writer, stem.with_suffix(".request")),
                    _copy(up_reader, writer, stem.with_suffix(".response")),
                )
            except (OSError, asyncio.CancelledError):
                pass
            finally:
                self._tasks.discard(task)
                writer.close()

        self._servers.append(await asyncio.start_server(connected, LOOPBACK, proxy, ssl=inward))

    def close(self) -> None:
        async def stop() -> None:
            for server in self._servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0.2)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def captured(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.captures.iterdir()):
            yield path.name, path.read_bytes()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: Path) -> None:
    with record.open("wb") as file:
        try:
            while data := await reader.read(1 << 16):
                file.write(data)
                file.flush()
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()


# ---- search ------------------------------------------------------------------------------------------------------

_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-]{12,}")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){8,}")
_CHUNK = re.compile(rb"\r\n[0-9a-fA-F]{1,8}\r\n")


def found_in(data: bytes, needles: Iterable[bytes], *, depth: int = 3) -> set[bytes]:
    """Needles that occur in ``data``, raw or under gzip, zlib, base64, hex, HTTP chunks or protobuf, nested."""
    wanted = needles if isinstance(needles, set | frozenset) else set(needles)
    starts = re.compile(b"|".join(re.escape(start) for start in sorted({needle[:8] for needle in wanted})))
    lengths = sorted({len(needle) for needle in wanted})
    return {
        layer[match.start() : match.start() + length]
        for layer in _layers(data, depth, set())
        for match in starts.finditer(layer)
        for length in lengths
        if layer[match.start() : match.start() + length] in wanted
    }


def _layers(data: bytes, depth: int, seen: set[int]) -> Iterator[bytes]:
    if hash(data) in seen:
        return
    seen.add(hash(data))
    yield data
    if depth == 0 or len(data) < 8:
        return
    for inner in _decoded(data):
        yield from _layers(inner, depth - 1, seen)


def _decoded(data: bytes) -> Iterator[bytes]:
    if _CHUNK.search(data):
        yield _CHUNK.sub(b"", data)
    for magic, bits in ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15), (b"\x78\x01", 15), (b"\x78\xda", 15)):
        for start in _occurrences(data, magic):
            with contextlib.suppress(zlib.error):
                unpacked = zlib.decompressobj(bits).decompress(data[start:], 1 << 24)
                if len(unpacked) > 8:
                    yield unpacked
    for match in _BASE64.finditer(data):
        text = match.group().replace(b"-", b"+").replace(b"_", b"/")
        for offset in range(4):
            part = text[offset : offset + (len(text) - offset) // 4 * 4]
            if len(part) >= 12:
                yield base64.b64decode(part)
    for match in _HEX.finditer(data):
        yield bytes.fromhex(match.group().decode())
    yield from _protobuf_fields(data)


def _occurrences(data: bytes, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1)


def _protobuf_fields(data: bytes) -> Iterator[bytes]:
    """Length-delimited fields of ``data`` read as one protobuf message (or of the body after HTTP headers)."""
    _, _, body = data.partition(b"\r\n\r\n")
    for message in (data, body):
        at = 0
        while at < len(message):
            tag, at = _varint(message, at)
            if tag is None:
                break
            wire = tag & 7
            if wire == 0:
                _, at = _varint(message, at)
            elif wire == 1:
                at += 8
            elif wire == 5:
                at += 4
            elif wire == 2:
                length, at = _varint(message, at)
                if length is None or at + length > len(message):
                    break
                if length >= 8:
                    yield message[at : at + length]
                at += length
            else:
                break


def _varint(data: bytes, at: int) -> tuple[int | None, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
        shift += 7
    return None, at
