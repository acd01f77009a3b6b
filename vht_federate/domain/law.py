"""Words of the European Health Data Space regulation, (EU) 2025/327, that a machine can check."""

from enum import StrEnum

__all__ = ["ActorKind", "DataCategory", "ProhibitedUse", "Purpose", "purpose_open_to"]


class Purpose(StrEnum):
    """Article 53(1): what electronic health data may be used for."""

    PUBLIC_HEALTH = "53.1.a"
    POLICY_AND_REGULATION = "53.1.b"
    OFFICIAL_STATISTICS = "53.1.c"
    EDUCATION = "53.1.d"
    RESEARCH_DEVELOPMENT = "53.1.e.i"
    RESEARCH_ALGORITHMS = "53.1.e.ii"
    CARE_IMPROVEMENT = "53.1.f"


class ActorKind(StrEnum):
    """Who uses the data: points (a)-(c) of Article 53(1) are reserved for public bodies (Article 53(2))."""

    PUBLIC_BODY = "public-body"
    UNION_BODY = "union-body"
    ACADEMIC = "academic"
    PRIVATE = "private"


_RESERVED = frozenset({Purpose.PUBLIC_HEALTH, Purpose.POLICY_AND_REGULATION, Purpose.OFFICIAL_STATISTICS})


def purpose_open_to(purpose: Purpose, actor: ActorKind) -> bool:
    """True where Article 53 lets this kind of actor rely on this purpose."""
    return purpose not in _RESERVED or actor in {ActorKind.PUBLIC_BODY, ActorKind.UNION_BODY}


class DataCategory(StrEnum):
    """Article 51(1): minimum categories of electronic health data for secondary use."""

    EHR = "51.1.a"
    DETERMINANTS = "51.1.b"
    NEEDS_AND_RESOURCES = "51.1.c"
    PATHOGENS = "51.1.d"
    ADMINISTRATIVE = "51.1.e"
    GENOMIC = "51.1.f"
    OTHER_MOLECULAR = "51.1.g"
    MEDICAL_DEVICES_PERSONAL = "51.1.h"
    WELLNESS = "51.1.i"
    PROFESSIONALS = "51.1.j"
    POPULATION_REGISTRIES = "51.1.k"
    MEDICAL_REGISTRIES = "51.1.l"
    CLINICAL_TRIALS = "51.1.m"
    MEDICAL_DEVICES_OTHER = "51.1.n"
    PRODUCT_REGISTRIES = "51.1.o"
    RESEARCH_COHORTS = "51.1.p"
    BIOBANKS = "51.1.q"


class ProhibitedUse(StrEnum):
    """Article 54: uses that every permit prohibits."""

    DETRIMENTAL_DECISIONS = "54.a"
    INSURANCE_OR_EMPLOYMENT = "54.b"
    MARKETING = "54.c"
    HARMFUL_PRODUCTS = "54.d"
    AGAINST_ETHICS_LAW = "54.e"
