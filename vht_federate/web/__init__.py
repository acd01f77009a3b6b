"""Server-rendered pages, shared by the hospital's console and the platform: one base, one style sheet, no script."""

from vht_federate.web.pages import CONTENT_SECURITY_POLICY, SecurityHeaders, install, stylesheet, templates

__all__ = ["CONTENT_SECURITY_POLICY", "SecurityHeaders", "install", "stylesheet", "templates"]
