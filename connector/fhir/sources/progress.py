"""How far a pull has come, in one file that is replaced whole: after a crash it says what is on disk."""

from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from vht_federate.files import replace_file

__all__ = ["Journal", "Piece", "Progress"]

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Piece(BaseModel):
    """One file of a pull. ``url``: where it comes from, or for a search the next page."""

    model_config = _STRICT

    name: str
    kind: Literal["output", "deleted", "outcome"] = "output"
    type: str | None = None
    url: str
    count: int | None = None  # resources, as the server says
    validator: str | None = None  # ETag or Last-Modified of what was begun
    paged: bool = False  # read page by page, by search or history
    pages: int = 0
    done: bool = False
    bytes: int = 0
    lines: int = 0
    sha256: str | None = None

    @property
    def folder(self) -> str:
        """Where it lies in the folder of the pull."""
        return "data" if self.kind == "output" else "aside"


class Progress(BaseModel):
    """``asked`` is a digest of what was asked for: another question makes this one worthless."""

    model_config = _STRICT

    schema_version: Literal["1"] = "1"
    asked: str
    begun_at: AwareDatetime
    since: AwareDatetime | None = None
    deleted_since: AwareDatetime | None = None  # None: nothing was taken in before, so nothing can be gone
    status_url: str | None = None
    transaction_time: AwareDatetime | None = None
    requires_token: bool = False
    pieces: tuple[Piece, ...] | None = None  # None: not yet known


class Journal:
    """``progress.json`` of one pull."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self.progress = path, progress

    @classmethod
    def resume(cls, path: Path) -> "Journal | None":
        try:
            return cls(path, Progress.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            return None

    def update(self, **changes: object) -> Progress:
        self.progress = self.progress.model_copy(update=changes)
        replace_file(self._path, self.progress.model_dump_json().encode())
        return self.progress

    def replace(self, number: int, piece: Piece) -> Piece:
        """``piece`` takes the place of piece ``number``."""
        pieces = list(self.progress.pieces or ())
        pieces[number] = piece
        self.update(pieces=tuple(pieces))
        return piece
