"""The node's two HTTP applications: outward for coordinators and auditors, internal for the hospital's operators.

They share one process and one node, and no route: an internal path does not exist on the outward listener.
"""

from connector.internal import internal_app
from connector.outward import outward_app

__all__ = ["internal_app", "outward_app"]
