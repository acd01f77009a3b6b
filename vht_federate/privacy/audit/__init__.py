"""The empirical audit: can an attacker who knows everything but one coin per canary do better than the claim allows?

A claim of differential privacy is refuted here, never proved: see docs/explanation/privacy-audit.md.
"""
