"""Surveys at a running node: of the components installed there, with today's opt-outs, each made once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from connector.fhir.codes import read_code_maps
from connector.fhir.store import Store
from connector.governance.opt_outs import opted_out
from connector.quality.survey import Survey, survey
from connector.store import Database
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.registry import Installed, find_component, installed

__all__ = ["Surveys"]

KEPT = 8
_Key = tuple[int | None, str, str, frozenset[str], tuple[str, ...]]


@dataclass
class Surveys:
    """``store`` is the folder of the FHIR store, ``code_maps`` of the hospital's own code maps, ``paths`` where
    components are installed besides those that ship."""

    store: Path
    paths: tuple[Path, ...]
    database: Database
    clock: Callable[[], datetime]
    code_maps: Path
    _cache: dict[_Key, Survey] = field(default_factory=dict, repr=False)

    def profiles(self) -> list[dict[str, Any]]:
        """Every profile of every component, in the order of their names."""
        return [
            {"component": name, "profile": profile, "title": chosen.title}
            for name, installation in installed(self.paths).items()
            for profile, chosen in sorted(installation.component.profiles.items())
        ]

    def of(self, component: str, profile: str) -> Survey:
        """Raises InputError VHT-INPUT-COMPONENT-UNKNOWN, VHT-INPUT-PROFILE; CohortError VHT-COHORT-EMPTY-STORE."""
        return self._survey(find_component(component, self.paths), profile)

    def all_of(self, component: str | None, profile: str | None) -> list[Survey]:
        """Of every profile, or those of one component, or those of one name."""
        chosen = [find_component(component, self.paths)] if component else list(installed(self.paths).values())
        names = [
            (installation, name)
            for installation in chosen
            for name in sorted(installation.component.profiles)
            if profile in (None, name)
        ]
        if not names and profile is not None:
            chosen[0].component.profile(profile)
        return [self._survey(installation, name) for installation, name in names]

    def _survey(self, installation: Installed, profile: str) -> Survey:
        with self.database.read() as session:
            excluded = frozenset(opted_out(session, self.clock()))
        generation = Store(self.store).current()
        files = ComponentFiles.read(installation.folder)
        maps = read_code_maps(self.code_maps)
        digests = tuple(maps.digests.values())
        key = (generation.number if generation else None, files.digest, profile, excluded, digests)
        result = self._cache.get(key)
        if result is None:
            view = files.cohort_view(profile)
            result = survey(
                self.store, files.component(), profile, excluded_subjects=excluded, cohort_view=view, maps=maps
            )
            while len(self._cache) >= KEPT:
                self._cache.pop(next(iter(self._cache)), None)
            self._cache[key] = result
        return result
