"""The card of an exported model, ``model.md``: with the head of a model repository of Hugging Face."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detkt.base.commands import command
from detkt.export.measuring import processor
from detkt.export.table import Row, export_table, percent2

CARD_FILE = "model.md"
_METRICS = {"map_voc07": "mAP (VOC2007, 11 points)", "map_area": "mAP (area)", "map_coco": "mAP (COCO, 0.50:0.95)"}
_PIPELINES = {"detection": "object-detection", "classification": "image-classification"}


@dataclass(frozen=True)
class About:
    """What the card tells besides the rows.

    data, split: name of the data set that was scored on, and its list; None: nothing was scored. pictures: how many.
    licence, data_licence: as the user gave them. training: the command that trained the network, as far as it is known.
    lead: the score that counts.
    """

    meta: Mapping[str, Any]
    data: str | None
    split: str | None
    pictures: int
    licence: str
    data_licence: str
    training: str
    versions: Mapping[str, str]
    opset: int | None
    lead: str = "map_voc07"

    @property
    def metrics(self) -> dict[str, str]:
        """Titles of the scores, the one that counts first."""
        return {key: _METRICS[key] for key in sorted(_METRICS, key=lambda key: key != self.lead)}


def training_command(run: Path, meta: Mapping[str, Any], tool: str) -> str:
    """The command that trained the network of the folder *run*."""
    extra = meta.get("extra") or {}
    method = extra.get("method")
    if (run / "config.yaml").is_file():
        return f"{command(tool)} --config config.yaml   # the run's own, of {run.name}"
    if method and extra.get("config"):
        return f"{command(tool)} --config {extra['config']} --method {method}"
    return "not known"


def model_card(about: About, rows: Sequence[Row]) -> str:
    """The text of ``model.md``."""
    meta = about.meta
    head = yaml.safe_dump(_head(about, rows), sort_keys=False, allow_unicode=True)
    name = meta["architecture"]
    lines = [f"---\n{head}---\n", f"# {name}\n"]
    method = (meta.get("extra") or {}).get("method")
    how = "" if method in (None, "none") else f", distilled with `{method}`"
    lines.append(f"A network for {meta['task']}{how}, trained and exported with detkt.\n")
    lines += [
        "| | |\n|---|---|",
        f"| architecture | `{name}` |",
        f"| classes | {len(meta['classes'])}: {', '.join(meta['classes'])} |",
        f"| data | {_data(about)} |",
        f"| licence of the data | {about.data_licence} |",
        f"| licence of the model | {about.licence} |",
        f"| training command | `{about.training}` |",
    ]
    if about.opset:
        lines.append(f"| ONNX opset | {about.opset} |")
    lines += ["\n## After export\n", f"```text\n{export_table(rows, about.lead)}\n```\n"]
    scored = "none were taken"
    if about.data:
        scored = (
            f"of {about.pictures} pictures. Boxes differ by more than 0.01 px, or 0.001 of the score; in the last "
            "column by more than 1 px, or 0.05"
        )
    lines.append(
        f"Milliseconds are of one picture: median (quartiles), on {processor()}. Scores in percent: {scored}.\n"
    )
    for row in rows:
        if row.intervals:
            parts = [
                f"{title} {percent2(row.intervals[key]['value'])} "
                f"[{percent2(row.intervals[key]['low'])}, {percent2(row.intervals[key]['high'])}]"
                for key, title in about.metrics.items()
                if key in row.intervals
            ]
            lines.append(f"- {row.name}: {'; '.join(parts)} (95 % of 1000 resamples of the pictures)")
    lines += [f"- {row.name}: {row.note}" for row in rows if row.note]
    lines.append("\n## Files\n\n| file | bytes | SHA-256 |\n|---|---|---|")
    lines += [
        f"| {path.name} | {path.stat().st_size} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        for path in dict.fromkeys(path for row in rows for path in row.files)
    ]
    lines.append(
        "\n## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in about.versions.items()) + "\n"
    )
    return "\n".join(lines)


def _data(about: About) -> str:
    config = (about.meta.get("extra") or {}).get("config")
    trained = f"trained with the config `{config}`; " if config else ""
    return f"{trained}scored on `{about.split}` of {about.data}" if about.data else f"{trained}not scored"


def _head(about: About, rows: Sequence[Row]) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "detkt",
        "license": about.licence,
        "pipeline_tag": _PIPELINES[about.meta["task"]],
        "tags": ["detkt", "knowledge-distillation", "torchvision", about.meta["architecture"]],
    }
    if about.opset:
        head["tags"].append("onnx")
    if not about.data:
        return head
    head["datasets"] = [about.data]
    head["metrics"] = ["mean_average_precision"]
    scores = rows[0].scores or {}
    values = [
        {"type": "mean_average_precision", "name": title, "value": round(100 * float(scores[key]), 2)}
        for key, title in about.metrics.items()
        if scores.get(key) is not None and scores[key] == scores[key]
    ]
    result = {
        "task": {"type": head["pipeline_tag"]},
        "dataset": {"type": about.data, "name": about.data, "split": about.split},
        "metrics": values,
    }
    head["model-index"] = [{"name": about.meta["architecture"], "results": [result]}]
    return head
