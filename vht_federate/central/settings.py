"""Configuration of the central platform: ``platform.toml`` in its state directory, written by ``vht platform init``."""

import tomllib
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vht_federate.errors import InputError

__all__ = ["PlatformSettings"]

FILE = "platform.toml"


class PlatformSettings(BaseModel):
    """One platform. Paths are absolute. ``trust`` is read again for every publication."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "Virtual human twin catalogue"
    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    certificate: Path
    key: Path
    ca: Path
    trust: Path
    maximum_upload_mb: int = Field(default=256, ge=1)  # of a bundle as it is sent; unpacked: four times that

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @classmethod
    def read(cls, state: Path) -> "PlatformSettings":
        """Raises InputError VHT-INPUT-STATE."""
        try:
            return cls.model_validate(tomllib.loads((state / FILE).read_text()))
        except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise InputError(
                f"{state} is not the state directory of a platform",
                code="VHT-INPUT-STATE",
                hint="make one with 'vht platform init DIR …'",
            ) from error

    def write(self, state: Path) -> None:
        (state / FILE).write_text(tomli_w.dumps(self.model_dump(mode="json")))
