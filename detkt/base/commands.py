"""How a user calls detkt's commands, for messages and help that say what to do."""

from __future__ import annotations

from detkt.base.paths import INSTALLED

# Command -> its file in tools/, which does the same in a clone that was not installed; None: it has none.
COMMANDS: dict[str, str | None] = {
    "train-det": "train_det",
    "train-cls": "train_cls",
    "eval": "eval_voc",
    "diff": "visualize_diff",
    "maps": "visualize_maps",
    "predict": "predict",
    "export": "export",
    "budget": None,
    "compare": "compare",
    "reproduce": None,
    "prepare": "prepare_data",
    "methods": None,
}


def command(name: str) -> str:
    """How to call the command *name* here: ``detkt NAME`` once installed, ``python tools/FILE.py`` in a clone."""
    if INSTALLED:
        return f"detkt {name}"
    tool = COMMANDS[name]
    return f"python tools/{tool}.py" if tool else f"python -m detkt {name}"
