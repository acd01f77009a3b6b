"""What a server's OperationOutcome says of asking again (FHIR R4, value set issue-type; Bulk Data: a poll that fails
without the job having failed says ``transient``).

The codes below ``transient`` in that hierarchy pass by themselves, all others do not. ``processing``, the root that
some servers put on everything, and codes that R4 does not have say nothing: then the status decides.
"""

from dataclasses import dataclass

import httpx
import orjson

__all__ = ["TRANSIENT", "Outcome", "outcome_of", "passes", "status_of"]

TRANSIENT = frozenset({"transient", "lock-error", "no-store", "exception", "timeout", "incomplete", "throttled"})
_FINAL = frozenset(
    {"invalid", "structure", "required", "value", "invariant"}
    | {"security", "login", "unknown", "expired", "forbidden", "suppressed"}
    | {"not-supported", "duplicate", "multiple-matches", "not-found", "deleted", "too-long", "code-invalid"}
    | {"extension", "too-costly", "business-rule", "conflict"}
)
_SILENT = frozenset({"processing", "informational"})
_COUNTING = frozenset({"fatal", "error"})  # severities
_PASSING_STATUS = frozenset({408, 429, 502, 503, 504})


@dataclass(frozen=True)
class Outcome:
    """The codes of its errors, of those that R4 has. Nothing else of it is kept: its texts may hold anything."""

    codes: tuple[str, ...]

    @property
    def transient(self) -> bool | None:
        """Whether all of its errors pass by themselves; None where it does not say."""
        telling = [code for code in self.codes if code not in _SILENT]
        return all(code in TRANSIENT for code in telling) if telling else None


def outcome_of(content: bytes) -> Outcome:
    """Of an answer's body; without a code where that is no OperationOutcome."""
    try:
        resource = orjson.loads(content)
    except orjson.JSONDecodeError:
        return Outcome(())
    if not isinstance(resource, dict) or resource.get("resourceType") != "OperationOutcome":
        return Outcome(())
    issues = resource.get("issue")
    errors = [
        issue.get("code")
        for issue in (issues if isinstance(issues, list) else [])
        if isinstance(issue, dict) and issue.get("severity") in _COUNTING
    ]
    known = TRANSIENT | _FINAL | _SILENT
    return Outcome(tuple(sorted({code for code in errors if isinstance(code, str) and code in known})))


def passes(answer: httpx.Response) -> bool:
    """Whether an error, its body in memory, is one to ask again after."""
    transient = outcome_of(answer.content).transient
    return answer.status_code in _PASSING_STATUS if transient is None else transient


def status_of(answer: httpx.Response) -> str:
    """Its status in words for people, with the codes of its outcome."""
    codes = outcome_of(answer.content).codes
    return f"{answer.status_code} ({', '.join(codes)})" if codes else str(answer.status_code)
