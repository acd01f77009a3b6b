"""FHIR servers that a node pulls from by itself: what is installed, when it is due, how it went."""
