"""A node's catalogue as DCAT 3 JSON-LD, one NON_PUBLIC dataset with the terms of HealthDCAT-AP Release 8 (Article 77).

Counts are the store's rounded ones; a count below the node's smallest cell is absent. The only distribution is a
visit: a permit and a signed study go in, differentially private aggregates come out.
"""

from datetime import datetime
from typing import Any

from connector.catalogue.variables import VARIABLES
from connector.settings import NodeSettings

__all__ = ["VISIT_FORMAT", "catalogue"]

VISIT_FORMAT = "urn:vht:format:federated-training-visit:1"
_AUTHORITY = "http://publications.europa.eu/resource/authority"
_EHDS = "http://data.europa.eu/eli/reg/2025/327"
_CONTEXT = {
    "adms": "http://www.w3.org/ns/adms#",
    "csvw": "http://www.w3.org/ns/csvw#",
    "cv": "http://data.europa.eu/m8g/",
    "dcat": "http://www.w3.org/ns/dcat#",
    "dcatap": "http://data.europa.eu/r5r/",
    "dct": "http://purl.org/dc/terms/",
    "dpv": "https://w3id.org/dpv#",
    "foaf": "http://xmlns.com/foaf/0.1/",
    "healthdcatap": "http://healthdataportal.eu/ns/health#",
    "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
    "vcard": "http://www.w3.org/2006/vcard/ns#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
_CODING_SYSTEMS = ("http://loinc.org", "http://snomed.info/sct", "http://www.whocc.no/atc", "http://unitsofmeasure.org")


def catalogue(settings: NodeSettings, summary: dict[str, Any], *, modified: datetime | None) -> dict[str, Any]:
    """``dcat:Catalog`` with the node's dataset. ``summary`` is ``connector.fhir.dataset_summary``."""
    contact = settings.contact_url or settings.outward_url
    return {
        "@context": _CONTEXT,
        "@id": f"{settings.outward_url}/catalogue",
        "@type": "dcat:Catalog",
        "dct:title": _text(f"Catalogue of {settings.holder or settings.name}"),
        "dct:description": _text("Datasets reachable by federated training visits under a data permit."),
        "dct:publisher": _agent(settings.holder or settings.name, contact, "foaf:Agent"),
        "dcatap:applicableLegislation": _iri(f"{_EHDS}/oj"),
        "dcat:dataset": [_dataset(settings, summary, contact, modified)],
    }


def _dataset(
    settings: NodeSettings, summary: dict[str, Any], contact: str, modified: datetime | None
) -> dict[str, Any]:
    dataset = settings.dataset
    identity = dataset.id if ":" in dataset.id else f"urn:vht:dataset:{dataset.id}"
    metadata: dict[str, Any] = {
        "@id": identity,
        "@type": "dcat:Dataset",
        "dct:identifier": dataset.id,
        "dct:title": _text(dataset.title),
        "dct:description": _text(dataset.description),
        "dct:publisher": _agent(settings.holder or settings.name, contact, "foaf:Agent"),
        "dct:accessRights": _iri(f"{_AUTHORITY}/access-right/NON_PUBLIC"),
        "dct:type": _iri(f"{_AUTHORITY}/dataset-type/PERSONAL_DATA"),
        "dct:provenance": {
            "@type": "dct:ProvenanceStatement",
            "rdfs:label": _text("Recorded in routine care and taken in as FHIR R4 resources."),
        },
        "dct:conformsTo": _iri("http://hl7.org/fhir/R4"),
        "dcat:theme": [_iri(f"{_AUTHORITY}/data-theme/HEAL")],
        "dcat:keyword": [_text(word) for word in ("electronic health records", "FHIR", "federated learning")],
        "dcat:contactPoint": {"@type": "vcard:Kind", "vcard:fn": settings.name, "vcard:hasURL": _iri(contact)},
        "dcatap:applicableLegislation": [_iri(f"{_EHDS}/oj")],
        "healthdcatap:hdab": _agent(settings.hdab, settings.issuer_url, "foaf:Agent"),
        "healthdcatap:healthCategory": [_iri(_category(category)) for category in dataset.categories],
        "healthdcatap:hasStructuredData": {"@type": "xsd:boolean", "@value": "true"},
        "healthdcatap:hasVariables": _variables(dataset.title),
        "healthdcatap:hasCodingSystem": [_iri(system) for system in _CODING_SYSTEMS],
        "dpv:hasPurpose": _iri("https://w3id.org/dpv/legal/eu/ehds#HealthcareScientificResearch"),
        "dcat:distribution": [_distribution(settings)],
    }
    if modified is not None:
        metadata["dct:modified"] = {"@type": "xsd:dateTime", "@value": modified.isoformat()}
    individuals, records = summary.get("patients_rounded"), summary.get("resources_rounded", {})
    if individuals is not None:
        metadata["healthdcatap:numberOfUniqueIndividuals"] = _count(individuals)
    if any(count is not None for count in records.values()):
        metadata["healthdcatap:numberOfRecords"] = _count(sum(count or 0 for count in records.values()))
    return metadata


def _distribution(settings: NodeSettings) -> dict[str, Any]:
    return {
        "@type": "dcat:Distribution",
        "dct:title": _text("Federated training visit"),
        "dct:description": _text(
            "An approved component trains inside the hospital; only differentially private aggregates leave."
        ),
        "dct:format": _iri(VISIT_FORMAT),
        "dcat:accessURL": _iri(f"{settings.outward_url}/visits"),
        "dcatap:applicableLegislation": [_iri(f"{_EHDS}/oj")],
    }


def _variables(title: str) -> dict[str, Any]:
    return {
        "@type": "csvw:TableGroup",
        "dct:title": _text(title),
        "csvw:table": [
            {
                "@type": "csvw:Table",
                "dct:title": _text(name),
                "csvw:column": [
                    {
                        "@type": "csvw:Column",
                        "csvw:name": column,
                        "csvw:title": _text(column.replace("_", " ")),
                        "csvw:datatype": datatype,
                        "dct:description": _text(description),
                    }
                    for column, datatype, description in columns
                ],
            }
            for name, columns in VARIABLES.items()
        ],
    }


def _agent(name: str, page: str, kind: str) -> dict[str, Any]:
    contact = {"@type": "cv:ContactPoint", "cv:contactPage": _iri(page)}
    return {"@type": kind, "foaf:name": _text(name), "cv:contactPoint": contact}


def _category(category: str) -> str:
    """The point of Article 51(1), as the European Legislation Identifier names subdivisions."""
    return f"{_EHDS}/art_51/par_1/pnt_{category.rsplit('.', 1)[-1]}/oj"


def _text(value: str) -> dict[str, str]:
    return {"@value": value, "@language": "en"}


def _iri(value: str) -> dict[str, str]:
    return {"@id": value}


def _count(value: int) -> dict[str, str]:
    return {"@type": "xsd:nonNegativeInteger", "@value": str(value)}
