"""Fakes for the seams, shipped: tests of this project and of yours use them. Product code never imports this."""

from vht_federate.testing.clock import FixedClock
from vht_federate.testing.noise import SeededNoise

__all__ = ["FixedClock", "SeededNoise"]
