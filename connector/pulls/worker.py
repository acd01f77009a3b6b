"""``python -m connector.pulls.worker STATE NAME [--whole]``: one pull in a process of its own, for the running node.

Downloading and taking in need a core and memory; the node that started this only records the outcome. On stdout, a JSON
object a line: ``{"phase"}``, then ``{"report"}`` of an intake, after which a line on stdin says that it is recorded;
at the end ``{"pulled"}`` or ``{"error"}``. Ended at any point, the next pull of this source goes on from there.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from connector.fhir import ingest
from connector.fhir.sources import Pulled, pull_from
from connector.governance.node_secret import NodeSecret
from connector.pulls.installed_sources import Sources
from connector.settings import NodeFiles, NodeSettings
from vht_federate.errors import UnavailableError, VhtError

__all__ = ["main"]

NICENESS = 5
TRIES, TRY_AGAIN_S = 720, 5.0  # while another intake writes to the store


def main(arguments: list[str]) -> int:
    """The exit status."""
    state, name, whole = Path(arguments[0]), arguments[1], "--whole" in arguments[2:]
    os.nice(NICENESS)
    try:
        source = Sources(NodeFiles(state).sources).get(name)
        _say({"phase": "downloading"})
        pulled, _ = pull_from(source.settings, source.home, lambda pulled: _take_in(state, pulled), whole=whole)
    except VhtError as error:
        _say({"error": error.envelope()})
        return error.exit_code
    except Exception as error:  # its text may hold what was read
        _say({"error": VhtError(f"the pull failed ({type(error).__name__})").envelope()})
        return 1
    _say({"pulled": pulled.to_dict()})
    return 0


def _take_in(state: Path, pulled: Pulled) -> None:
    _say({"phase": "taking in"})
    _say({"report": _ingest(state, pulled)})
    if sys.stdin.readline().strip() != "recorded":
        raise UnavailableError("the node did not record this intake", code="VHT-UNAVAILABLE-SOURCE-PULL")


def _ingest(state: Path, pulled: Pulled) -> dict[str, Any]:
    settings, files = NodeSettings.read(state), NodeFiles(state)
    key = NodeSecret.read(files.node_secret).subject_key
    for remaining in reversed(range(TRIES)):
        try:
            return ingest(
                pulled.folder,
                files.fhir,
                node_key=key,
                dataset=settings.dataset.id,
                deletions=pulled.deletions,
                sample_size=settings.validation_sample,
            ).to_dict()
        except UnavailableError as error:
            if error.code != "VHT-UNAVAILABLE-INGEST" or not remaining:
                raise
            time.sleep(TRY_AGAIN_S)
    raise AssertionError("unreachable")


def _say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
