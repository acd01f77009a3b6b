"""Fixtures of the platform's tests: one bundle that it trusts, and bundles spoiled before they were signed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.publishable_release import Platform, Publishable


@pytest.fixture(scope="session")
def bundle_and_trust(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("publishable")
    with Publishable(root) as rehearsal:
        rehearsal.play().bundle(root / "bundle")
        return root / "bundle", rehearsal.trust.model_dump(mode="json")


@pytest.fixture
def bundle(bundle_and_trust: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A fresh copy of a bundle that the platform of ``platform`` trusts."""
    return Path(shutil.copytree(bundle_and_trust[0], tmp_path / "bundle"))


@pytest.fixture
def platform(bundle_and_trust: tuple[Path, dict[str, Any]], tmp_path: Path) -> Platform:
    new_platform = Platform(tmp_path / "platform")
    new_platform.trust.write_text(json.dumps(bundle_and_trust[1]))
    return new_platform


@pytest.fixture
def spoiled(tmp_path: Path, platform: Platform) -> Callable[..., Path]:
    """Build a bundle whose releases were spoiled before the trusted coordinator signed them."""

    def build(spoil: Callable[[Path], None], **options: Any) -> Path:
        root = tmp_path / "spoiled"
        with Publishable(root, spoil=spoil, **options) as rehearsal:
            rehearsal.play().bundle(root / "bundle")
            rehearsal.trust.write(platform.trust)
        return root / "bundle"

    return build
