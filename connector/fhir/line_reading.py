"""One line of an export, from its bytes to the rows that are kept: the same at intake and when it is explained."""

from dataclasses import dataclass
from typing import Any

from connector.fhir.json_depth import digestible, parsed
from connector.fhir.observation_values import Units
from connector.fhir.r4.judgement import judge
from connector.fhir.resources import Reading, kept_type, read_resource, refuse_modifiers

__all__ = ["LineReading", "read_line"]


@dataclass(frozen=True, slots=True)
class LineReading:
    """``digestible``: one spelling for each content, to make a digest of."""

    resource: dict[str, Any]
    reading: Reading
    digestible: bytes


def read_line(content: bytes, units: Units) -> LineReading:
    """Raises Quarantine with the reason and the path of the first thing for which the line is set aside."""
    resource = parsed(content)
    kept_type(resource)
    # An escape may spell the key in another way; either sign is worth a walk through the tree.
    if b"modifierExtension" in content or b"\\u" in content:
        refuse_modifiers(resource)
    spelled = digestible(resource)
    judge(resource, content)
    return LineReading(resource, read_resource(resource, units), spelled)
