"""The connector's local FHIR API: what a permit opens of the store, de-identified, for programs inside the hospital."""
