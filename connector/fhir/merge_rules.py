"""What becomes of each line that was read: SQL over the staged lines and what the store has seen.

Of several contents under one type and id, FHIR's own order decides where it can: ``meta.lastUpdated``, then a numeric
``meta.versionId``; the newest stands, older ones are superseded. Where a content says neither, nobody can know which of
two stories is true: the first stands, another one is a contradiction. The same content again is a duplicate. What a
source deleted (``late``, ``left_store``: ``connector.fhir.deletions``) is superseded in every older version.
"""

# ruff: noqa: S608 - put together from constants.

__all__ = ["FAULTS", "FILES", "GONE", "LATE", "NOTHING_SEEN", "ROWS", "SEEN", "VERDICTS"]

NOTHING_SEEN = (
    "SELECT NULL::VARCHAR AS resource, NULL::VARCHAR AS content, NULL::TIMESTAMPTZ AS updated, "
    "NULL::BIGINT AS version, NULL::INTEGER AS replaced WHERE false"
)
# Parts of stores made before versions were kept lack the later columns; by name, they are NULL.
SEEN = NOTHING_SEEN + " UNION ALL BY NAME FROM read_parquet([{parts}], union_by_name = true)"

_STAMPS = "coalesce(epoch_us(updated), -1) AS u, coalesce(version, -1) AS v"
_AGREED = "CASE WHEN {told} THEN {first} WHEN {kept} THEN {old} ELSE {best} END"
# told: the content that stands has no version to compare with; kept: what the store has is as new as the newest line.
_TOLD = "(CASE WHEN known IS NULL THEN greatest(first_u, first_v) ELSE greatest(ku, kv) END < 0)"
_KEPT = "(known IS NOT NULL AND (ku > best_u OR (ku = best_u AND kv >= best_v)))"


def _agreed(first: str, old: str, best: str) -> str:
    return _AGREED.format(told=_TOLD, first=first, kept=_KEPT, old=old, best=best)


VERDICTS = f"""
CREATE TEMP TABLE verdict AS
WITH stamped AS (
    SELECT s.*, {_STAMPS}, k.content AS known, k.ku, k.kv, k.replaced
    FROM {{staged}} s ANTI JOIN late USING (file, line) LEFT JOIN (
        SELECT resource, content, replaced, coalesce(epoch_us(updated), -1) AS ku, coalesce(version, -1) AS kv
        FROM ({{seen}})
    ) k USING (resource)
), ordered AS (
    SELECT *, row_number() OVER same AS nth, first_value(content) OVER same AS first_content,
        first_value(u) OVER same AS first_u, first_value(v) OVER same AS first_v,
        row_number() OVER newest AS rank, first_value(content) OVER newest AS best_content,
        first_value(u) OVER newest AS best_u, first_value(v) OVER newest AS best_v
    FROM stamped
    WINDOW same AS (PARTITION BY resource ORDER BY file, line),
        newest AS (PARTITION BY resource ORDER BY u DESC, v DESC, file, line)
), judged AS (
    SELECT *, {_agreed("known IS NULL AND nth = 1", "false", "rank = 1")} AS stands,
        {_agreed("coalesce(known, first_content)", "known", "best_content")} AS right_content,
        {_agreed("-1", "ku", "best_u")} AS right_u, {_agreed("-1", "kv", "best_v")} AS right_v
    FROM ordered
)
SELECT * EXCLUDE (nth, first_content, first_u, first_v, rank, best_content, best_u, best_v, stands, right_content,
        right_u, right_v, u, v, ku, kv),
    CASE WHEN stands THEN 'accepted'
        WHEN content = right_content THEN 'duplicate'
        WHEN greatest(u, v) >= 0 AND (u < right_u OR (u = right_u AND v < right_v)) THEN 'superseded'
        ELSE 'conflict' END AS verdict
FROM judged
"""
LATE = """
INSERT INTO verdict BY NAME SELECT s.*, 'superseded' AS verdict FROM {staged} s SEMI JOIN late USING (file, line)
"""
# The staged rows of what was accepted, in the order of reading: the first coding of a concept stays the first.
ROWS = """
SELECT s.* EXCLUDE (file, line, file_row_number)
FROM {staged} s JOIN verdict v ON s.file = v.file AND s.line = v.line WHERE verdict = 'accepted'
ORDER BY s.file_row_number
"""
# Resources of the store that give way to a newer version, or that a source deleted.
GONE = """
CREATE TEMP TABLE gone AS
SELECT resource, type FROM verdict WHERE verdict = 'accepted' AND known IS NOT NULL UNION FROM left_store
"""
FAULTS = """
CREATE TEMP TABLE fault AS
SELECT file, line, kind, reason, path FROM {staged} WHERE kind <> 'value'
UNION ALL
SELECT file, line, 'line', 'conflicting-content', type || '.id' FROM verdict WHERE verdict = 'conflict'
UNION ALL
SELECT file, line, 'line', 'unresolved', 'MedicationRequest.medicationReference' FROM unresolved
UNION ALL
SELECT f.file, f.line, kind, reason, path FROM {staged} f JOIN verdict v ON f.file = v.file AND f.line = v.line
WHERE kind = 'value' AND verdict = 'accepted'
"""
FILES = """
SELECT name, coalesce(n, 0) + coalesce(q, 0), coalesce(a, 0), coalesce(q, 0), coalesce(d, 0),
    CASE WHEN empty > 0 THEN 'empty' ELSE coalesce(cut, 'ok') END, coalesce(s, 0)
FROM source
LEFT JOIN (
    SELECT file, count(*) FILTER (verdict <> 'conflict') AS n, count(*) FILTER (verdict = 'accepted') AS a,
        count(*) FILTER (verdict = 'duplicate') AS d, count(*) FILTER (verdict = 'superseded') AS s
    FROM verdict GROUP BY file) USING (file)
LEFT JOIN (
    SELECT file, count(*) FILTER (kind = 'line') AS q, count(*) FILTER (reason = 'empty-file') AS empty,
        max(reason) FILTER (reason IN ('gzip-truncated', 'gzip-corrupt', 'zstd-truncated', 'zstd-corrupt',
            'unreadable-file', 'utf-16', 'not-a-bundle', 'bundle-type', 'bundle-too-long')) AS cut
    FROM fault GROUP BY file) USING (file)
ORDER BY name
"""
