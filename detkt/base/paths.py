"""Where what is shipped lies, and where relative paths of configs and defaults point."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# setup.cfg puts configs/ and the models of data/ here when the package is built; in a clone they are beside it.
INSTALLED = (_PACKAGE / "shipped").is_dir()
SHIPPED = _PACKAGE / "shipped" if INSTALLED else _PACKAGE.parent


def resolve(path: str | Path) -> Path:
    """*path* as given where it is absolute or exists below the working folder, else among what is shipped.

    What is in neither place is to be made: below the clone or, where detkt is installed, the working folder.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or path.exists():
        return path
    shipped = SHIPPED / path
    return path if INSTALLED and not shipped.exists() else shipped
