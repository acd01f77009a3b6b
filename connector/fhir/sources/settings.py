"""``source.toml``: one FHIR server that a node pulls from. Every field is public; the private key is another file."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from connector.fhir.resources import TABLES
from connector.fhir.sources.allowed_origins import Guard, origin_of
from vht_federate.errors import InputError

__all__ = ["AuthorizationSettings", "SourceSettings"]

_STRICT = ConfigDict(extra="forbid", frozen=True)
Url = Annotated[str, Field(pattern=r"^https?://[^\s#@?]+$", max_length=2000)]
ResourceType = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{1,63}$")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class AuthorizationSettings(BaseModel):
    """SMART Backend Services: who we are at the authorization server."""

    model_config = _STRICT

    client_id: str = Field(min_length=1, max_length=255)
    key: Path  # PEM; RSA signs RS384, P-384 signs ES384. Relative to the file that names it.
    kid: str | None = None  # None: the key's RFC 7638 thumbprint
    jku: Url | None = None  # where our public keys are, for servers that want it said
    token_url: Url | None = None  # None: as .well-known/smart-configuration says
    scope: str = "system/*.rs"


class SourceSettings(BaseModel):
    """Where the data is, and how that server wants to be asked."""

    model_config = _STRICT

    schema_version: Literal["1"] = "1"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    base_url: Url
    mode: Literal["export", "search"] = "export"
    # get: Bulk Data STU 2/3. post: 4.0 ballot, repeated parameters. post-comma: POST to servers that keep the first.
    dialect: Literal["get", "post", "post-comma"] = "get"
    level: Literal["system", "patient", "group"] = "system"
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9\-.]{1,64}$")] | None = None
    types: tuple[ResourceType, ...] = Field(default=tuple(TABLES), min_length=1)
    every: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[smhd]$")] | None = None  # 15m, 6h, 1d; None: when asked to
    since_as_filter: bool = False  # also say _since as _typeFilter, for servers that ignore it at patient level
    # Who tells of deletions: an export's manifest, or Type/_history, where a server's exports are silent.
    deletions: Literal["manifest", "history"] = "manifest"
    allowed_origins: tuple[Url, ...] = ()  # besides base_url's own, e.g. of a file server
    ca: Path | None = None  # certificate authority (PEM); None: those of the system
    page_size: int = Field(default=200, ge=1, le=10_000)
    deadline_s: float = Field(default=86_400.0, gt=0)
    longest_poll_s: float = Field(default=60.0, gt=0)  # a server may say Retry-After: 120 for a job of seconds
    attempts: int = Field(default=6, ge=1, le=100)  # in a row, without any progress
    maximum_bytes: int = Field(default=1 << 40, gt=0)  # of one pull
    authorization: AuthorizationSettings | None = None

    @model_validator(mode="after")
    def _whole(self) -> "SourceSettings":
        if (self.level == "group") != (self.group is not None):
            raise ValueError("group belongs to level group")
        return self

    @property
    def every_s(self) -> float | None:
        """Seconds between two pulls of a running node."""
        return int(self.every[:-1]) * _SECONDS[self.every[-1]] if self.every else None

    @property
    def base(self) -> str:
        return self.base_url.rstrip("/")

    @property
    def guard(self) -> Guard:
        origins = (self.base_url, *self.allowed_origins)
        return Guard(origin_of(self.base_url), frozenset(origin_of(url) for url in origins))

    @classmethod
    def read(cls, path: Path) -> "SourceSettings":
        """Raises InputError VHT-INPUT-SOURCE naming the fields, never their values."""
        try:
            settings = cls.model_validate(tomllib.loads(path.read_text()))
        except OSError as error:
            raise InputError(f"there is no file {path.name}", code="VHT-INPUT-SOURCE") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path.name} is not TOML", code="VHT-INPUT-SOURCE") from error
        except ValidationError as error:
            places = sorted({".".join(map(str, item["loc"])) or "level" for item in error.errors()})
            raise InputError(
                f"{path.name} does not fit its schema at: {', '.join(places)}",
                code="VHT-INPUT-SOURCE",
                hint="docs/reference/sources.md describes every field",
            ) from error
        return settings._beside(path.parent)

    def _beside(self, folder: Path) -> "SourceSettings":
        changes: dict[str, object] = {"ca": folder / self.ca if self.ca else None}
        if self.authorization:
            changes["authorization"] = self.authorization.model_copy(update={"key": folder / self.authorization.key})
        settings = self.model_copy(update=changes)
        for url in (settings.base_url, *settings.allowed_origins):
            settings.guard.check(url)
        return settings
