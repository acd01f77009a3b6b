"""What one client may ask of a node, in one frozen value."""

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    assertion_s: int = 300  # SMART Backend Services: exp at most five minutes ahead
    token_s: int = 300
    tokens: int = 10_000  # in force at once, over all clients
    requests_per_s: float = 20.0  # per client, after a burst of
    burst: int = 100
    page: int = 100  # resources of a search, unless _count says otherwise
    page_max: int = 1_000
    query_s: float = 60.0  # of the database, per request
    view_rows: int = 100_000
    view_bytes: int = 2 << 30  # of the resources that a view reads
    view_answer: int = 256 << 20  # of its rows in memory
    jobs_per_client: int = 2  # exports that wait, run, or hold files
    jobs: int = 16
    job_bytes: int = 20 << 30
    file_resources: int = 1_000_000  # of one NDJSON file
    keep_s: int = 3_600  # files of an export that has ended
    poll_s: int = 2  # Retry-After
    status_every_s: float = 5.0  # how often a running export asks whether its permit still holds
    search_parameters: int = 20  # of one search
    query_length: int = 2_000  # characters of a query in the access log; a longer one is refused
    audit_file: int = 16 << 20
    audit_files: int = 64  # more are kept only while they are younger than
    audit_days: int = 30
    audit_files_max: int = 1_024  # where all of so many are younger, nothing is answered
