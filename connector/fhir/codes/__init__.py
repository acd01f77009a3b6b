"""Code maps: for each clinical feature its codes, units and bounds, and which codes of different systems mean the same;
data files that name their source."""

from connector.fhir.codes.code_maps import CodeMaps, Through, read_code_maps
from connector.fhir.codes.code_systems import CODE_SYSTEMS, CodeSystem, Coding, canonical, code_system_at, covers
from connector.fhir.codes.concept_maps import Concept, ConceptMap, shipped_maps
from connector.fhir.codes.features import LOINC, SNOMED, Feature, feature_of, features
from connector.fhir.codes.unit_conversion import Measure, UnitConversion

__all__ = [
    "CODE_SYSTEMS",
    "LOINC",
    "SNOMED",
    "CodeMaps",
    "CodeSystem",
    "Coding",
    "Concept",
    "ConceptMap",
    "Feature",
    "Measure",
    "Through",
    "UnitConversion",
    "canonical",
    "code_system_at",
    "covers",
    "feature_of",
    "features",
    "read_code_maps",
    "shipped_maps",
]
