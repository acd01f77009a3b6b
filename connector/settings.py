"""The node's configuration ``node.toml`` and the layout of its state directory.

``vht node init`` writes both; every field is public. Secrets are files of their own with mode 0600.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.law import DataCategory
from vht_federate.domain.permit import Identifier
from vht_federate.errors import InputError
from vht_federate.files import replace_file

__all__ = ["CoordinatorSettings", "DatasetSettings", "NodeFiles", "NodeSettings"]

Port = Annotated[int, Field(ge=1, le=65535)]
_STRICT = ConfigDict(extra="forbid", frozen=True)


class DatasetSettings(BaseModel):
    """The dataset this node holds, as its catalogue describes it."""

    model_config = _STRICT

    id: Identifier
    title: str = "Electronic health records for secondary use"
    description: str = "FHIR R4 resources of one hospital, reachable by federated training visits only."
    categories: tuple[DataCategory, ...] = Field(min_length=1)


class CoordinatorSettings(BaseModel):
    """Where the node's Flower SuperNode reports."""

    model_config = _STRICT

    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]  # host:port
    ca: Path
    supernode_port: Port  # local Runtime API of the SuperNode, loopback only


class NodeSettings(BaseModel):
    """``node.toml``. A patient of the dataset never pays more than ``epsilon_cap`` at ``delta``, over all permits."""

    model_config = _STRICT

    schema_version: Literal["1"] = "1"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    host: str = "127.0.0.1"
    port: Port
    internal_host: str = "127.0.0.1"  # operators only: loopback, or an address inside the hospital
    internal_port: Port
    certificate: Path
    key: Path
    ca: Path
    issuer_url: Annotated[str, Field(pattern=r"^https://")]
    hdab: str = "Health Data Access Body"  # how the catalogue names the permit issuer
    holder: str | None = None  # how the catalogue names the hospital; None: by the node's name
    contact_url: Annotated[str, Field(pattern=r"^https?://")] | None = None  # None: the outward listener
    component_paths: tuple[Path, ...] = ()  # folders of components installed beside those that ship
    dataset: DatasetSettings
    epsilon_cap: float = Field(default=3.0, gt=0, le=100)
    dataset_epsilon_cap: float | None = Field(default=None, gt=0)  # of all runs together; None: no such cap
    delta: float = Field(default=1e-5, gt=0, lt=0.01)
    smallest_cell: int = Field(default=10, ge=1, le=1000)  # no smaller count is told to anybody else
    feasibility_epsilon: float = Field(default=0.3, ge=0, le=10)  # one question costs at most; 0: none is answered
    # Every answer is given so long after its question was accepted: how long the view ran is not to be seen.
    feasibility_seconds: float = Field(default=10.0, gt=0, le=60)
    # Of each type and intake, so many lines by place and by chance are validated against FHIR's models; 0: none.
    validation_sample: int = Field(default=20, ge=0, le=1000)
    coordinator: CoordinatorSettings | None = None
    database_url: str | None = None  # None: SQLite in the state directory
    enclave_start_timeout_s: float = Field(default=120.0, gt=0)
    enclave_isolation: IsolationLevel = IsolationLevel.SANDBOX  # no enclave starts below it; weaker: at your own risk

    @property
    def outward_url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def internal_url(self) -> str:
        return f"https://{self.internal_host}:{self.internal_port}"

    @classmethod
    def read(cls, state: Path) -> "NodeSettings":
        """Raises InputError VHT-INPUT-CONFIG naming the fields, never their values."""
        path = state / "node.toml"
        try:
            return cls.model_validate(tomllib.loads(path.read_text()))
        except OSError as error:
            raise InputError(
                f"{state} is not a node's state directory",
                code="VHT-INPUT-CONFIG",
                hint="make one with 'vht node init'",
            ) from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"node.toml is not TOML: {error}", code="VHT-INPUT-CONFIG") from error
        except ValidationError as error:
            places = sorted({".".join(map(str, item["loc"])) for item in error.errors()})
            raise InputError(
                f"node.toml does not fit its schema at: {', '.join(places)}", code="VHT-INPUT-CONFIG"
            ) from error

    def write(self, state: Path) -> None:
        """Write ``node.toml`` atomically."""
        content = tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
        replace_file(state / "node.toml", content.encode())


@dataclass(frozen=True)
class NodeFiles:
    """Where things lie in a node's state directory. Folders below ``visits`` hold data of one visit each."""

    state: Path

    @property
    def pid(self) -> Path:
        return self.state / "serve.pid"

    @property
    def evidence(self) -> Path:
        return self.state / "evidence"

    @property
    def evidence_key(self) -> Path:
        return self.state / "evidence.key"

    @property
    def issuer_key(self) -> Path:
        return self.state / "issuer.pub.json"

    @property
    def node_secret(self) -> Path:
        return self.state / "node.secret"

    @property
    def operator_token(self) -> Path:
        return self.state / "operator.token"

    @property
    def supernode_key(self) -> Path:
        return self.state / "supernode.key"

    @property
    def supernode_log(self) -> Path:
        return self.state / "supernode.log"

    @property
    def flower_home(self) -> Path:
        return self.state / "flower"

    @property
    def database(self) -> Path:
        return self.state / "node.sqlite"

    @property
    def log(self) -> Path:
        return self.state / "node.log"

    @property
    def fhir(self) -> Path:
        return self.state / "fhir"

    @property
    def code_maps(self) -> Path:
        """The hospital's own code maps, beside those that ship."""
        return self.state / "code-maps"

    @property
    def sources(self) -> Path:
        """What FHIR servers were asked for, and how far that has come."""
        return self.state / "sources"

    @property
    def visits(self) -> Path:
        return self.state / "visits"

    @property
    def run_dir(self) -> Path:
        """A file that names the short-lived folder of Unix sockets while the node runs."""
        return self.state / "run_dir"

    def visit(self, visit_id: str) -> Path:
        return self.visits / visit_id

    def cohort(self, visit_id: str) -> Path:
        return self.visit(visit_id) / "cohort"
