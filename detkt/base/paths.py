"""Where relative paths of configs and defaults point."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def resolve(path: str | Path) -> Path:
    """*path* as given where it is absolute or exists below the working folder, else below the project's."""
    path = Path(path).expanduser()
    if path.is_absolute() or path.exists():
        return path
    return PROJECT / path if (PROJECT / "configs").is_dir() else path
