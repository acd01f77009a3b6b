"""Which addresses a source may be led to. A server's answer names further addresses: only listed origins are visited.

A manifest that points elsewhere (to the cloud's metadata service, to a database next door) is refused, and so is plain
HTTP to anything but this machine.
"""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from vht_federate.errors import RefusedError

__all__ = ["Guard", "origin_of"]

_PORTS = {"http": 80, "https": 443}


def _refused(why: str) -> RefusedError:
    return RefusedError(
        f"the FHIR server leads to an address that {why}",
        code="VHT-REFUSED-SOURCE-ADDRESS",
        hint="an origin that you trust goes into allowed_origins of the source's file",
    )


def origin_of(url: str) -> str:
    """``scheme://host:port``, in lower case. Raises RefusedError for what is no HTTP address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("cannot be read") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise _refused("is not HTTP")
    if "@" in parts.netloc:
        raise _refused("carries credentials")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or _PORTS[parts.scheme]}"


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """``home`` is the origin of the FHIR base, ``allowed`` all origins that may be visited."""

    home: str
    allowed: frozenset[str]

    def check(self, url: str, *, seen_at: str = "") -> str:
        """The absolute address, relative to ``seen_at``. Raises RefusedError VHT-REFUSED-SOURCE-ADDRESS."""
        try:
            absolute = urljoin(seen_at, url) if seen_at else url
        except ValueError:
            raise _refused("cannot be read") from None
        if any(ord(letter) <= 32 or ord(letter) == 127 for letter in absolute) or "\\" in absolute:
            raise _refused("cannot be read")
        origin = origin_of(absolute)
        if origin not in self.allowed:
            raise _refused("is not allowed")
        if origin.startswith("http:") and not _loopback(urlsplit(origin).hostname or ""):
            raise _refused("is not encrypted")
        return absolute

    def is_home(self, url: str) -> bool:
        return origin_of(url) == self.home
