"""Does a file that arrives in pieces begin as NDJSON? Answered by its bytes, however a network cuts them."""

import codecs

from connector.fhir.sources.response_body import malformed

__all__ = ["NdjsonStart"]

_WHITESPACE = b" \t\r\n"
_MARK = codecs.BOM_UTF8


class NdjsonStart:
    """Fed with the bytes of a file from its first one, until it is ``known`` to begin with an object.

    A byte order mark (RFC 8259, 8.1) and blank lines may come before that; a file of nothing else begins with nothing.
    """

    def __init__(self) -> None:
        self.known = False
        self._mark = b""  # what there is of a mark

    def feed(self, piece: bytes) -> None:
        """Raises UnavailableError VHT-UNAVAILABLE-SOURCE-ANSWER where this is no NDJSON."""
        if self.known or not piece:
            return
        if len(self._mark) < len(_MARK) and _MARK.startswith((self._mark + piece)[: len(_MARK)]):
            wanted = len(_MARK) - len(self._mark)
            self._mark, piece = self._mark + piece[:wanted], piece[wanted:]
        elif self._mark and len(self._mark) < len(_MARK):
            raise _no_ndjson()
        else:
            self._mark = _MARK  # it can only stand first
        rest = piece.lstrip(_WHITESPACE)
        if rest and not rest.startswith(b"{"):
            raise _no_ndjson()
        self.known = bool(rest)


def _no_ndjson() -> Exception:
    return malformed("file, which is no NDJSON,")
