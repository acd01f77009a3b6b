"""Why something is set aside, and what an operator can do about it: for the command, the console and the guide."""

from dataclasses import dataclass

__all__ = ["REASONS", "Reason", "reason"]


@dataclass(frozen=True)
class Reason:
    """``beyond_r4``: what is set aside is valid FHIR R4 and of no use here; a node asks for more than FHIR does."""

    what: str
    do: str
    beyond_r4: bool = False

    @property
    def says(self) -> str:
        return f"valid FHIR, of no use here: {self.what}" if self.beyond_r4 else self.what


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
    "utf-16": Reason("the file is in UTF-16; FHIR is UTF-8", "write UTF-8"),
    "not-a-bundle": Reason("a .json file holds another resource than a Bundle", "write NDJSON"),
    "bundle-type": Reason(
        "a message, whose event says what its entries mean, or a Bundle of no type that R4 has",
        "write NDJSON, or a collection",
        True,
    ),
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
    "unsupported-type": Reason("a resource type that is not read", "leave it out of the export, or ignore it", True),
    "missing": Reason("a required element is absent", "map the element that the path names"),
    "type": Reason("an element has the wrong JSON type", "send numbers as JSON numbers, lists as lists"),
    "format": Reason("a value is spelled as its type does not allow", "times need seconds and a zone, codes no spaces"),
    "code": Reason("a value outside a required set", "map to FHIR's own codes"),
    "choice": Reason("two values at once of a choice, such as value[x]", "send one"),
    "null": Reason("JSON null where FHIR has none", "leave the element out"),
    "empty": Reason("an object, list or text with nothing in it", "leave the element out"),
    "unknown-element": Reason("an element that R4 does not know", "see whether it is misspelled, or of R5"),
    "duplicate-key": Reason("an object has two members of one name", "see what writes such JSON: one of them is lost"),
    "invariant": Reason(
        "a value beside the reason for its absence, or again in a component (obs-6, obs-7)", "send one of the two"
    ),
    "reference": Reason("subject names no patient in a known form", "refer to Patient/ID"),
    "unresolved": Reason(
        "the medication referred to is neither in this export nor held, or a search finds no one patient in its Bundle",
        "export Medication as well, or send medicationCodeableConcept; refer to Patient/ID",
        True,
    ),
    "no-time": Reason(
        "nothing says when it was, or not in a form that is read", "map the element that the path names", True
    ),
    "no-subject": Reason("nothing says whose it is", "map subject", True),
    "not-a-patient": Reason("subject is a Group, a Device, a Location or another type", "harmless: leave it out", True),
    "logical-reference": Reason("subject is named by an identifier or a text alone", "refer to Patient/ID", True),
    "contained-subject": Reason("the patient stands inside the resource, without an id", "refer to Patient/ID", True),
    "modifier-extension": Reason("a modifierExtension may turn the meaning around", "leave such resources out", True),
    "implicit-rules": Reason("implicitRules may turn the meaning around", "leave such resources out", True),
    "conflicting-content": Reason(
        "this type and id was seen with other content, and no version says which is newer",
        "send meta.lastUpdated, or take the export in with --replace",
    ),
    # of a value
    "unknown-unit": Reason("no known unit for this code", "map to a UCUM unit of the port (docs/reference/ports.md)"),
    "missing-unit": Reason("a number without a unit", "send system and code of UCUM", True),
    "unit-system": Reason("a unit code of another system than UCUM", "send http://unitsofmeasure.org", True),
    "missing-number": Reason("a quantity without a number", "leave the resource out, or send a dataAbsentReason", True),
    "comparator": Reason("< or >: the number is a bound, not a value", "nothing: a bound cannot be a value", True),
    "no-code": Reason("a coded answer without a code", "map the answer to a code", True),
    "unread-type": Reason("a value type that is not read, such as text", "send a quantity or a code", True),
}


def reason(code: str) -> Reason:
    """What ``code`` means; of a reason that is not listed, its name alone."""
    return REASONS.get(code) or Reason(code, "see docs/reference/fhir.md")
