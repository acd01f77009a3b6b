"""Canonical JSON, keys, signatures and signed manifests: what evidence, permits and packages stand on."""
