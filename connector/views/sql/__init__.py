"""SQL on FHIR v2 views, compiled to DuckDB: ``run(view, resources)`` and ``explain(view)``."""

from connector.views.sql.compilation import Plan, compile_view
from connector.views.sql.execution import explain, run

__all__ = ["Plan", "compile_view", "explain", "run"]
