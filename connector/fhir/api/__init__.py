"""The connector's local FHIR API: what a permit opens of the store, de-identified, for programs inside the hospital."""

from connector.fhir.api.app import fhir_app

__all__ = ["fhir_app"]
