"""Configuration of the permit issuer: ``authority.toml`` in its state directory, written by ``vht permit init``."""

import tomllib
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vht_federate.errors import InputError

__all__ = ["AuthoritySettings", "key_path", "store_path"]

FILE = "authority.toml"


class AuthoritySettings(BaseModel):
    """One permit issuer. Paths of PEM files are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hdab: str
    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    certificate: Path
    key: Path
    status_validity_s: float = Field(default=60.0, gt=0)  # how long a hospital may rely on one status list

    @classmethod
    def read(cls, state: Path) -> "AuthoritySettings":
        """Raises InputError VHT-INPUT-STATE."""
        try:
            return cls.model_validate(tomllib.loads((state / FILE).read_text()))
        except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise InputError(
                f"{state} is not the state directory of a permit issuer",
                code="VHT-INPUT-STATE",
                hint="make one with 'vht permit init --state DIR …'",
            ) from error

    def write(self, state: Path) -> None:
        (state / FILE).write_text(tomli_w.dumps(self.model_dump(mode="json")))


def key_path(state: Path) -> Path:
    return state / "issuer.key"


def store_path(state: Path) -> Path:
    return state / "authority.sqlite"
