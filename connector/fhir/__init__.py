"""FHIR at the door: NDJSON in, minimised and pseudonymised Parquet out, every line accounted for."""

from connector.fhir.ingest_report import FileReport, IngestReport
from connector.fhir.intake import ingest
from connector.fhir.store import Store, dataset_summary
from connector.fhir.subject_keys import subject_key

__all__ = ["FileReport", "IngestReport", "Store", "dataset_summary", "ingest", "subject_key"]
