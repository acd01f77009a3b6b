"""The ServerApp: opens its run's directory and plays the rounds. It needs no torch; weights are bytes to it."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import ServerApp
from flwr.superlink.grid.http_grid import HttpGrid

from strategies.file_notification import FileNotification
from strategies.phase import Exchange
from strategies.rounds import Rounds
from strategies.run_state import PID_FILE, RunDirectory
from vht_federate.errors import InputError
from vht_federate.processes import PidFile

__all__ = ["app"]

SUPERLINK_PATIENCE_S = 20.0  # for one call, which is made again up to a phase's deadline; Flower's own has no end
app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: HttpGrid, context: Context) -> None:
    """Play the run whose directory the coordinator named. What ended it is in ``run.json``."""
    directory = RunDirectory(Path(str(context.run_config["run-directory"])))
    dispatch, state = directory.dispatch(), directory.state()
    if state.ended:
        raise InputError(f"this run already ended as {state.state}", code="VHT-INPUT-RUN")
    grid._retry_invoker.max_time = SUPERLINK_PATIENCE_S
    exchange = Exchange(
        grid,
        {node.name: node.flower_node for node in dispatch.nodes},
        dispatch.round_deadline_s,
        FileNotification(dispatch.message_notification) if dispatch.message_notification else None,
        FileNotification(dispatch.replies) if dispatch.replies else None,
        directory.stop_requested,
    )
    rounds = Rounds(directory, dispatch, state, exchange, lambda: datetime.now(UTC))
    with PidFile(directory.path / PID_FILE):
        try:
            rounds.play()
        except Exception as error:
            state.end("failed", reason=f"the ServerApp failed ({type(error).__name__}); see the coordinator's logs")
            with suppress(OSError):
                directory.write_state(state)
            raise
