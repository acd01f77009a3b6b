"""SQL on FHIR v2 views, compiled to DuckDB: ``run(view, resources)`` and ``explain(view)``."""

from connector.views.sql.engine import explain, run
from connector.views.sql.plan import Plan, compile_view

__all__ = ["Plan", "compile_view", "explain", "run"]
