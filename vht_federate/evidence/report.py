"""The page an auditor prints and signs: one HTML file, no script, nothing fetched from anywhere."""

from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from vht_federate.evidence.trust import TrustFile
from vht_federate.evidence.verify import Verification
from vht_federate.web.pages import stylesheet, templates

__all__ = ["report_html"]


def report_html(held: Verification, trust: TrustFile, *, verified_at: datetime) -> str:
    """The report of a verification that held, made at ``verified_at`` with the keys of ``trust``."""
    pages = templates(Path(__file__).parent / "templates", site="Audit", nav=())
    keys = {"issuer": trust.issuer_key.kid, "coordinator": trust.coordinator_key.kid}
    for name in sorted(trust.nodes):
        key = trust.node_key(name)
        keys[name] = key.kid if key else "-"
    return pages.get_template("report.html").render(
        held=held,
        epsilon=float(held.as_dict()["epsilon"]),
        entries=sum(held.entries.values()),
        keys=keys,
        verified_at=verified_at,
        style=Markup(bytes(stylesheet().body).decode()),  # noqa: S704 - our own file
    )
