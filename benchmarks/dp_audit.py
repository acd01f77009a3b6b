"""Twenty audits of the engine that nodes use, and twenty of each broken one: how often the claim stands.

Randomness is the operating system's, as in ``vht privacy audit``: another run gives other audits.
"""

import time

import numpy as np

from benchmarks.table import Row
from vht_federate.privacy.audit.claim import AuditedClaim, Plant
from vht_federate.privacy.audit.run import Finding, audit
from vht_federate.privacy.noise import SecureNoise

RUNS = 20


def measure() -> list[Row]:
    claim = AuditedClaim()
    rows: list[Row] = []
    slowest = 0.0
    bounds: dict[str, float] = {}
    for plant in (None, *Plant):
        findings: list[Finding] = []
        for _ in range(RUNS):
            started = time.perf_counter()
            findings.append(audit(claim, SecureNoise(), plant))
            slowest = max(slowest, time.perf_counter() - started)
        refuted = sum(finding.refuted for finding in findings)
        bounds[plant.value if plant else "true"] = float(np.median([finding.lower_bound for finding in findings]))
        if plant is None:
            rows.append(Row("true_engine_passes", RUNS - refuted, f"of {RUNS}", "20 of 20", refuted == 0))
        else:
            name = f"{plant.value.replace('-', '_')}_refuted"
            rows.append(Row(name, refuted, f"of {RUNS}", ">= 19 of 20", refuted >= 19))
    for name, bound in bounds.items():
        metric = f"{name.replace('-', '_')}_lower_bound"
        rows.append(Row(metric, bound, "epsilon, median", "-", True, "claimed", claim.epsilon))
    rows.append(Row("canaries", claim.canaries, "canaries", ">= 5000", claim.canaries >= 5000))
    rows.append(Row("confidence", claim.confidence, "", ">= 0.999", claim.confidence >= 0.999))
    rows.append(Row("claimed", claim.epsilon, "epsilon", "<= 1", claim.epsilon <= 1))
    rows.append(Row("slowest_run", slowest, "s", "<= 60", slowest <= 60))
    return rows
