"""The ServerApp of the coordinator's own installation."""

from strategies.server_app import app

__all__ = ["app"]
