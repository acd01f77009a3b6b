"""Views: from the node's store to the tensors of one visit, with the permitted columns and nobody who opted out."""

from connector.views.cohort import CohortManifest, build_cohort

__all__ = ["CohortManifest", "build_cohort"]
