"""One process at a time in a run's folder."""

import errno
from pathlib import Path

import filelock

from potstill.errors import InputError

LOCK, LOCKED = ".lock", ".locked"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""What a file system without locks says."""


def is_held(run: Path) -> bool:
    """Return whether another process works on a run, as far as that can be seen from here."""
    if not any((run / name).exists() for name in (LOCK, LOCKED)):
        return False
    try:
        locked_by(run).release()
    except InputError:
        return True
    except OSError:  # nothing may be written here
        pass
    return False


def locked_by(run: Path) -> filelock.BaseFileLock:
    """Return the lock of a run's folder, which this process holds from now on.

    Where a file system has no locks (some of clusters), that a file is there is the lock.

    Raises:
        InputError: another process holds it.
    """
    lock: filelock.BaseFileLock = filelock.FileLock(run / LOCK, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = filelock.SoftFileLock(run / LOCKED)
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        lasting = isinstance(lock, filelock.SoftFileLock)
        hint = f", or remove {lock.lock_file} if it was killed" if lasting else ""
        raise InputError(
            f"another process works on the run in {run}; wait for it, stop it, or choose another "
            f"folder{hint}"
        ) from error
    return lock
