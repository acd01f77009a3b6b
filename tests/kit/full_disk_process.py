"""What a process does on a disk that may be full, in one word: the code of the refusal, or how many lines it took."""

from pathlib import Path

from connector.fhir import ingest
from connector.fhir.sources import SourceSettings, download, pulling
from kit.fhir_resources import KEY
from vht_federate.errors import VhtError


def attempt(disk: Path, arguments: list[str]) -> str:
    what, *rest = arguments
    try:
        if what == "ingest":
            return str(ingest(Path(rest[0]), disk / "store", node_key=KEY, dataset="d").accepted)
        fields = {"name": "ehr", "base_url": rest[0], "mode": rest[1], "types": ("Patient", "Observation")}
        with pulling(disk):
            return str(download(SourceSettings.model_validate({**fields, "page_size": 500}), disk).lines)
    except VhtError as error:
        return error.code
