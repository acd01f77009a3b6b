"""Code maps: for each clinical feature its codes, units and bounds, as data files that name their source."""

from connector.fhir.codes.features import LOINC, SNOMED, Feature, feature_of, features
from connector.fhir.codes.unit_conversion import Measure, UnitConversion

__all__ = ["LOINC", "SNOMED", "Feature", "Measure", "UnitConversion", "feature_of", "features"]
