"""A user of its own for an enclave of a service that runs as root.

A number that no account has, chosen by the visit, from the range that systemd keeps for such users (61184 to 65519). It
owns the visit's folder and nothing else. It goes with a root folder of its own (``own_root``): the way to the visit
leads through folders that only root may enter, and that are not there in the other root.
"""

import os
import pwd
import zlib
from pathlib import Path

from connector.enclave.file_view import FileView

__all__ = ["enter_own_user", "give_folders", "user_for"]

_FIRST, _COUNT = 61184, 4336


def user_for(name: str) -> int | None:
    """The number for the visit ``name``; None where this process is not root, or no number is free."""
    if os.geteuid() != 0:
        return None
    start = zlib.crc32(name.encode())
    for step in range(_COUNT):
        number = _FIRST + (start + step) % _COUNT
        try:
            pwd.getpwuid(number)
        except KeyError:
            return number
    return None


def give_folders(view: FileView, user: int) -> bool:
    """What ``view`` writes belongs to ``user`` from here on. False where this process may not give it away."""
    try:
        for folder in view.write:
            for parent, folders, files in os.walk(folder):
                os.chown(parent, user, user)
                for name in (*folders, *files):
                    os.chown(Path(parent, name), user, user, follow_symlinks=False)
    except OSError:
        return False
    return True


def enter_own_user(view: FileView, user: int) -> bool:
    """Become ``user``, for good. False, and root as before, where ``user`` could not read what ``view`` reads."""
    needed = [path for path in (*view.read, *view.write) if os.path.lexists(path)]
    try:
        os.setgroups([])
        os.setresgid(user, user, 0)
        os.setresuid(user, user, 0)
    except OSError:
        return False
    if not all(map(_readable, needed)):
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        return False
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    return True


def _readable(path: Path) -> bool:
    """A folder that can be entered, a file that can be opened."""
    return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
