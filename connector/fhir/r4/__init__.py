"""What FHIR R4 demands of a resource: element definitions, formats of primitives, and the judgement of both."""
