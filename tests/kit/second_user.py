"""Another user of the same machine: what ``nobody`` can do, done in a process of nobody's."""

import os
import pickle
import pwd
from collections.abc import Callable
from typing import Any

import pytest

needs_a_second_user = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can act as a second user: run these tests as root to see what one can do"
)


def as_nobody(act: Callable[[], Any]) -> Any:
    """What ``act()`` returns, or the exception that it raised, in a fork of this process that is ``nobody``."""
    account = pwd.getpwnam("nobody")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            try:
                result = act()
            except Exception as error:
                result = error
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(answer)  # noqa: S301 - our own fork wrote it
