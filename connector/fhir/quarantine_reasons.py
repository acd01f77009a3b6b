"""Why something is set aside, and what an operator can do about it: for the command, the console and the guide."""

from dataclasses import dataclass

__all__ = ["REASONS", "Reason", "reason"]


@dataclass(frozen=True)
class Reason:
    what: str
    do: str


_EXPORT_AGAIN = "export that file again"

REASONS = {
    # of what lies in a folder and is not read
    "system-file": Reason("what macOS or Windows leaves beside files: ._*, .DS_Store, __MACOSX, Thumbs.db", "harmless"),
    "other-type": Reason(
        "named after another resource type than the view reads", "name the file itself if it is mixed"
    ),
    "other-ending": Reason("neither .ndjson, .jsonl nor .json, plain, .gz or .zst", "rename it if it is FHIR"),
    "not-fhir": Reason("a JSON file without a resource, such as a manifest", "harmless where it is none of the export"),
    "subfolder": Reason("only the folder itself is read", "take it in by itself"),
    "no-file": Reason("a link that leads nowhere, or no file at all", "see what it should point to"),
    # of a file
    "empty-file": Reason("the file has no line", "see whether the export was cut off"),
    # of a line
    "malformed-json": Reason("the line is not one JSON value", "write one resource a line, in UTF-8"),
    "nested-too-deep": Reason(
        "the resource has more than about 250 arrays and objects inside each other", "see what writes such resources"
    ),
    "blank-line": Reason("nothing is on the line", "harmless: leave it out"),
    "line-too-long": Reason("the line has more than 16 MiB", "split what is attached to the resource"),
    "not-a-bundle": Reason("a .json file holds another resource, or a Bundle that is not read", "write NDJSON"),
    "bundle-too-long": Reason("a Bundle has more than 64 MiB and would be read whole", "write NDJSON"),
    "no-resource": Reason("an entry of a Bundle has no resource, e.g. a deletion", "harmless where it is a deletion"),
    "gzip-truncated": Reason("the stream ends early; whole lines before were read", _EXPORT_AGAIN),
    "gzip-corrupt": Reason("the stream is damaged; whole lines before were read", _EXPORT_AGAIN),
    "zstd-truncated": Reason("the stream ends early; whole lines before were read", _EXPORT_AGAIN),
    "zstd-corrupt": Reason("the stream is damaged; whole lines before were read", _EXPORT_AGAIN),
    "unreadable-file": Reason("the file could not be read to its end", "check the disk and the rights"),
    "unreadable-deletion": Reason(
        "a list of deletions has an entry that is not understood; the others count, and the source is asked again",
        "see the server's list; pull with --replace where it cannot be corrected",
    ),
    "not-an-object": Reason("the line is JSON, but no resource", "write one resource a line"),
    "unsupported-type": Reason("a resource type that is not read", "leave it out of the export, or ignore it"),
    "missing": Reason("a required element is absent", "map the element that the path names"),
    "type": Reason("an element has the wrong JSON type", "send numbers as JSON numbers, lists as lists"),
    "format": Reason("a code, id, date or time is spelled as FHIR does not allow", "times need seconds and a zone"),
    "code": Reason("a value outside a required set", "map to FHIR's own codes"),
    "choice": Reason("two values at once in value[x]", "send one"),
    "reference": Reason("subject names no patient in a known form", "refer to Patient/ID"),
    "unresolved": Reason("the medication is in another resource", "send medicationCodeableConcept"),
    "modifier-extension": Reason("a modifierExtension may turn the meaning around", "leave such resources out"),
    "implicit-rules": Reason("implicitRules may turn the meaning around", "leave such resources out"),
    "conflicting-content": Reason(
        "this type and id was seen with other content, and no version says which is newer",
        "send meta.lastUpdated, or take the export in with --replace",
    ),
    # of a value
    "unknown-unit": Reason("no known unit for this code", "map to a UCUM unit of the port (docs/reference/ports.md)"),
    "missing-unit": Reason("a number without a unit", "send system and code of UCUM"),
    "unit-system": Reason("a unit code of another system than UCUM", "send http://unitsofmeasure.org"),
    "missing-number": Reason("a quantity without a number", "leave the resource out, or send a dataAbsentReason"),
    "comparator": Reason("< or >: the number is a bound, not a value", "nothing: a bound cannot be a value"),
    "no-code": Reason("a coded answer without a code", "map the answer to a code"),
    "unread-type": Reason("a value type that is not read, such as text", "send a quantity or a code"),
}


def reason(code: str) -> Reason:
    """What ``code`` means; of a reason that is not listed, its name alone."""
    return REASONS.get(code) or Reason(code, "see docs/reference/fhir.md")
