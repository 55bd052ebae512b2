"""Folders that something is written to: seen to be usable before the work, made after it."""

from __future__ import annotations

import os
from pathlib import Path

from detkt.errors import InputError


def check_folder(folder: Path, flag: str = "--output") -> None:
    """See that *folder* is there or can be made, and can be written to; nothing is made yet.

    flag: what the user gave it by. Raises InputError: a file stands in its way, or it is not writable.
    """
    present = folder
    while not os.path.lexists(present):
        present = present.parent
    if not present.is_dir():
        raise InputError(f"the output folder {folder} cannot be made: {present} is a file; choose another {flag}")
    if not os.access(present, os.W_OK | os.X_OK):
        raise InputError(f"the output folder {folder} is not writable; choose another {flag}")


def make_folder(folder: Path, flag: str = "--output") -> None:
    """Make *folder*, and those above it, where it is not there. Raises InputError as `check_folder` does."""
    check_folder(folder, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {folder}: {error.strerror}; choose another {flag}") from None
