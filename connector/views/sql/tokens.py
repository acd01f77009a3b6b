"""FHIRPath's tokens. Lexical rules: FHIRPath 2.0 (N1), section 12."""

import re
from dataclasses import dataclass

from connector.views.sql.view_errors import Place, view_error

__all__ = ["MAX_LENGTH", "MAX_TOKENS", "Token", "tokenize"]

MAX_LENGTH = 8192
MAX_TOKENS = 1500

_DATE = r"\d{4}(?:-\d{2}(?:-\d{2})?)?"
_TIME = r"\d{2}:\d{2}:\d{2}(?:\.\d+)?"
_PATTERN = re.compile(
    rf"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<partial>@(?:{_DATE})?T\d{{2}}(?::\d{{2}})?(?![\d:]))
    |(?P<zoned>@T{_TIME}(?:Z|[+-]\d{{2}}:\d{{2}}))
    |(?P<datetime>@{_DATE}T(?:{_TIME}(?:Z|[+-]\d{{2}}:\d{{2}})?)?)
    |(?P<date>@{_DATE})
    |(?P<time>@T{_TIME})
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<string>'(?:[^'\\]|\\.)*')
    |(?P<constant>%(?:[A-Za-z_]\w*|`(?:[^`\\]|\\.)*`|'(?:[^'\\]|\\.)*'))
    |(?P<variable>\$\w+)
    |(?P<name>[A-Za-z_]\w*|`(?:[^`\\]|\\.)*`)
    |(?P<symbol><=|>=|!=|!~|[-+*/&|=~<>().,\[\]{{}}])""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_REFUSED = {
    "partial": "a time without seconds is not in SQL on FHIR's FHIRPath",
    "zoned": "a time of day has no offset",
}
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}


@dataclass(frozen=True)
class Token:
    """``kind`` is the name of the lexical rule; ``text`` is unquoted and unescaped; ``at`` counts from 0."""

    kind: str
    text: str
    at: int


def tokenize(path: str, place: Place) -> list[Token]:
    """All tokens of ``path`` and a closing ``end``.

    Raises: ViewError VHT-VIEW-SYNTAX for a character that starts no token, VHT-VIEW-LIMIT for a path too long.
    """
    if len(path) > MAX_LENGTH:
        raise view_error("LIMIT", place, f"a path has at most {MAX_LENGTH} characters")
    tokens: list[Token] = []
    at = 0
    while at < len(path):
        match = _PATTERN.match(path, at)
        if match is None:
            raise view_error("SYNTAX", place, "no FHIRPath expression continues like this", at=at)
        kind = str(match.lastgroup)
        if kind in _REFUSED:
            raise view_error("SYNTAX", place, _REFUSED[kind], at=at)
        if kind != "space":
            tokens.append(Token(kind, _text(kind, match.group(), place, at), at))
        at = match.end()
    if len(tokens) > MAX_TOKENS:
        raise view_error("LIMIT", place, f"a path has at most {MAX_TOKENS} tokens")
    return [*tokens, Token("end", "", len(path))]


def _text(kind: str, raw: str, place: Place, at: int) -> str:
    if kind == "constant":
        return _text("name", raw[1:], place, at)
    if raw[0] not in "'`":
        return raw
    text = _ESCAPE.sub(_unescaped, raw[1:-1])
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise view_error("SYNTAX", place, "a string holds neither U+0000 nor surrogates", at=at)
    return text


def _unescaped(match: re.Match[str]) -> str:
    code = match.group(1)
    return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPES.get(code, code)
