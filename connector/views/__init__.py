"""Views: from the node's store to the tensors of one visit, with the permitted columns and nobody who opted out; and
any SQL on FHIR v2 view over FHIR resources."""

from connector.views.cohort import CohortManifest, build_cohort
from connector.views.cohort_specification import CohortSpecification
from connector.views.sql import explain, run

__all__ = ["CohortManifest", "CohortSpecification", "build_cohort", "explain", "run"]
