"""The model: a generalised linear one over publicly scaled ports. Its file is borrowed, and covered by the digest."""

from .generalised_linear import build

__all__ = ["build"]
