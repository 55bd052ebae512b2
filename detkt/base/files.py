"""Files and folders: read with one error line, written whole or not at all, seen to be usable before the work."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detkt.base.errors import InputError, first_line


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let *write* fill a temporary file beside *path*, flush it to disk, then rename it.

    Whatever happens while writing, *path* is the old file or the new one, whole. What a killed process leaves of a
    temporary file is overwritten by the next write.

    Raises:
        InputError: the disk is full or the folder is not writable; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError of its zip writer
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"cannot write {path}: {reason}; free space or choose another folder") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_together(folder: Path, contents: Mapping[Path, str]) -> None:
    """Write the text files *contents* in *folder*: all of them, or none. Raises InputError as `write_atomically`."""
    made = not folder.exists()
    temporary = {path: path.with_name(f".{path.name[:200]}.tmp") for path in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in contents.items():
            with open(temporary[path], "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        raise InputError(
            f"cannot write result files to {folder}: {error.strerror}; free space or choose another folder"
        ) from None
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless files are in it


def load_json(path: str | os.PathLike, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """What the JSON file *path* holds. *object_hook*: see `json.loads`.

    Raises InputError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_hook=object_hook)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not JSON: it is no text (UTF-8)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, column {error.colno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists …
        raise InputError(f"{path} holds a number too long, or lists nested too deeply, to be read") from None
