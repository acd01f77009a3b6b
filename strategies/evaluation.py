"""Metrics from noised tables (``vht_federate.packaging.evaluation``): whoever audits a run computes the same."""

from vht_federate.packaging.evaluation import area_under_curve, metrics_of, summarise

__all__ = ["area_under_curve", "metrics_of", "summarise"]
