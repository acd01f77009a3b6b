"""What a node says of its datasets to the world: DCAT JSON-LD with the terms of HealthDCAT-AP."""

from connector.catalogue.dcat import VISIT_FORMAT, catalogue

__all__ = ["VISIT_FORMAT", "catalogue"]
