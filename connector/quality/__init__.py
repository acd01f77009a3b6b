"""Mapping quality: what a component would find in this node's store, and what a study with it would lose here."""

from connector.quality.survey import Survey, survey

__all__ = ["Survey", "survey"]
