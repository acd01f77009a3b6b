"""Every error a person or a program can meet, as one tree.

    VhtError                      code VHT-INTERNAL      exit 1
    ├── InputError                bad file, bad argument exit 2
    │   ├── NotFoundError         nothing of that name, or not yours
    │   ├── ViewError
    │   └── WireError             malformed message between our processes
    ├── RefusedError              a rule says no         exit 3
    │   ├── PermitError           signature, status, expiry, purpose, user, category
    │   ├── ComponentError        digest, approval
    │   ├── BudgetError           cap, missing reservation
    │   ├── CohortError           too few patients or nodes
    │   ├── EgressError           something that must not leave
    │   └── PublicationError      the platform refuses
    ├── VerificationError         evidence does not hold exit 4
    ├── UnavailableError          a peer or a deadline   exit 5
    ├── RevokedError              permit revoked mid-run exit 6
    └── InterruptError            Ctrl-C                 exit 130

A person reads ``message`` and ``hint``; a program reads ``code``. None of the three may carry a value that
comes from a patient: name the line number, the element path or the count instead.
"""

from typing import Any, ClassVar

__all__ = [
    "BudgetError",
    "CohortError",
    "ComponentError",
    "EgressError",
    "InputError",
    "InterruptError",
    "NotFoundError",
    "PermitError",
    "PublicationError",
    "RefusedError",
    "RevokedError",
    "UnavailableError",
    "VerificationError",
    "VhtError",
    "ViewError",
    "WireError",
    "error_from_envelope",
]


class VhtError(Exception):
    """An error that nobody foresaw, and the base of all others.

    ``code`` is stable across releases; ``hint`` says what to do next; ``retry_after_s``, where it is known, when the
    same may be asked again (HTTP: Retry-After).
    """

    default_code: ClassVar[str] = "VHT-INTERNAL"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.retry_after_s = retry_after_s

    def envelope(self) -> dict[str, str]:
        """The ``error`` member of every JSON answer: ``{code, message, hint}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def headers(self) -> dict[str, str]:
        """Of the HTTP answer that carries the envelope."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class InputError(VhtError):
    """A bad file, a bad argument, a wrong state directory."""

    default_code = "VHT-INPUT"
    exit_code = 2
    http_status = 400


class NotFoundError(InputError):
    """Nothing of that name, or not yours to see."""

    default_code = "VHT-INPUT-NOT-FOUND"
    http_status = 404


class ViewError(InputError):
    """A view that SQL on FHIR or FHIR R4 does not allow."""

    default_code = "VHT-VIEW"


class WireError(InputError):
    """A malformed message between our processes."""

    default_code = "VHT-WIRE"


class RefusedError(VhtError):
    """A rule says no."""

    default_code = "VHT-REFUSED"
    exit_code = 3
    http_status = 403


class PermitError(RefusedError):
    """The permit does not allow it: signature, status, time, purpose, user, category, columns."""

    default_code = "VHT-PERMIT"


class ComponentError(RefusedError):
    """The component is not what was approved, or its code does not do what a component must."""

    default_code = "VHT-COMPONENT"


class BudgetError(RefusedError):
    """It would cost more privacy than is left or allowed."""

    default_code = "VHT-BUDGET"
    http_status = 409


class CohortError(RefusedError):
    """Too few patients or too few hospitals."""

    default_code = "VHT-COHORT"
    http_status = 409


class EgressError(RefusedError):
    """Something that must not leave a hospital."""

    default_code = "VHT-EGRESS"


class PublicationError(RefusedError):
    """The platform refuses a publication."""

    default_code = "VHT-PUBLICATION"
    http_status = 422


class VerificationError(VhtError):
    """Evidence does not hold."""

    default_code = "VHT-VERIFY"
    exit_code = 4
    http_status = 422


class UnavailableError(VhtError):
    """A peer, a deadline or a resource is not there."""

    default_code = "VHT-UNAVAILABLE"
    exit_code = 5
    http_status = 503


class RevokedError(VhtError):
    """The permit was revoked."""

    default_code = "VHT-PERMIT-REVOKED"
    exit_code = 6
    http_status = 403


class InterruptError(VhtError):
    """Interrupted by Ctrl-C."""

    default_code = "VHT-INTERRUPTED"
    exit_code = 130
    http_status = 503


_BY_PREFIX: tuple[tuple[str, type[VhtError]], ...] = (
    ("VHT-PERMIT-REVOKED", RevokedError),
    ("VHT-PERMIT", PermitError),
    ("VHT-COMPONENT", ComponentError),
    ("VHT-BUDGET", BudgetError),
    ("VHT-COHORT", CohortError),
    ("VHT-EGRESS", EgressError),
    ("VHT-PUBLICATION", PublicationError),
    ("VHT-VERIFY", VerificationError),
    ("VHT-UNAVAILABLE", UnavailableError),
    ("VHT-VIEW", ViewError),
    ("VHT-WIRE", WireError),
    ("VHT-INPUT-NOT-FOUND", NotFoundError),
    ("VHT-INPUT-PATIENT", NotFoundError),
    ("VHT-INPUT", InputError),
    ("VHT-REFUSED", RefusedError),
)


def error_from_envelope(envelope: dict[str, Any]) -> VhtError:
    """Rebuild the typed error that a peer sent as ``{code, message, hint}``; an unknown code stays a VhtError."""
    code = str(envelope.get("code", VhtError.default_code))
    kind = next((kind for prefix, kind in _BY_PREFIX if code.startswith(prefix)), VhtError)
    return kind(str(envelope.get("message", "no message")), code=code, hint=str(envelope.get("hint", "")))
