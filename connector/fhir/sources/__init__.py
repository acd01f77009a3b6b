"""FHIR servers as sources: Bulk Data export or paged search into a staging folder that the intake reads."""

from connector.fhir.sources.pull import Pulled, download, pull_from, pulling, settle_pull
from connector.fhir.sources.settings import SourceSettings

__all__ = ["Pulled", "SourceSettings", "download", "pull_from", "pulling", "settle_pull"]
