"""The site is true: its Python runs, its reference pages are the code's, its pages are all in the menu."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from markdown.extensions.toc import slugify
from torch.utils.data import DataLoader

from detkt.models import build_detector

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCKS = re.findall(
    r"^## (.+?)\n.*?```python\n(.*?)```", (DOCS / "guides/own_loop.md").read_text(), re.DOTALL | re.MULTILINE
)


@pytest.fixture
def written():
    """The module docs/write_reference.py."""
    spec = importlib.util.spec_from_file_location("write_reference", DOCS / "write_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["reference/settings", "reference/methods", "guides/notebook"])
def test_what_is_written_from_the_code_is_the_codes(written, page):
    """Where this fails: `python docs/write_reference.py`."""
    assert (DOCS / f"{page}.md").read_text() == getattr(written, f"{Path(page).name}_page")()


def test_every_setting_is_explained(written):
    """No key of a config without a word on it."""
    for cls in (*written.SECTIONS.values(), written.config.Config):
        missing = {field.name for field in written.fields(cls)} - set(written.told(cls)[1])
        assert not missing - {"data", "student", "teacher", "train", "methods"}, cls


def test_the_menu_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))
    assert yaml.safe_load(text)["docs_dir"] == "docs"
    found = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.name != "table.md"}
    assert pages == found


@pytest.mark.parametrize("name", re.findall(r"^::: (.+)$", (DOCS / "reference/api.md").read_text(), re.MULTILINE))
def test_docstrings_of_the_api_are_markdown(name):
    """Sphinx's roles and its ``::`` before a block would be shown as they are."""
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    members = [value for key, value in vars(thing).items() if key[0] != "_"] if isinstance(thing, type) else []
    for text in filter(None, (inspect.getdoc(each) for each in (thing, *members))):
        assert not re.search(r":[a-z]+:`|::$", text, re.MULTILINE), text


def test_results_are_called_by_their_seed():
    """`detkt compare --runs` refuses others."""
    named = {path: re.search(r"-s(\d+)$", path.stem) for path in (DOCS / "results").rglob("*.json")}
    wrong = [path.name for path, seed in named.items() if seed and json.loads(path.read_text())["seed"] != int(seed[1])]
    assert not wrong


# The site's build checks its own, too; README and CONTRIBUTING are read in the repository alone.
TEXTS = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS, ids=[str(page.relative_to(ROOT)) for page in TEXTS])
def test_a_page_links_to_what_is_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file() and target.is_relative_to(ROOT), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", without_blocks(target), re.MULTILINE)
            assert anchor in {slugify(title, "-") for title in titles}, link


@pytest.mark.parametrize("page", TEXTS, ids=[str(page.relative_to(ROOT)) for page in TEXTS])
def test_a_file_of_the_repository_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:detkt|tests|docs|tools|configs|data/models)/[\w./-]+)`", without_blocks(page))
    # The guide to methods has its reader write these.
    to_be_written = {"detkt/methods/similarity.py", "tests/methods/test_similarity.py"}
    assert not [name for name in named if name not in to_be_written and not (ROOT / name).exists()]


@pytest.fixture
def nets():
    """What the guide calls student, teacher and loader, so small that a step takes hundredths of a second."""
    torch.manual_seed(0)
    options = {"min_size": 64, "max_size": 96, "anchor_sizes": [16, 32], "box_batch_size_per_image": 8}
    student = build_detector("fasterrcnn_resnet10x0.125_c4", 4, **options).train()
    teacher = build_detector("fasterrcnn_resnet10x0.25_c4", 4, **options)
    target = {"boxes": torch.tensor([[5.0, 5, 35, 40]]), "labels": torch.tensor([1])}
    pictures = [(torch.rand(3, *size), target) for size in ((64, 80), (50, 90)) * 2]
    loader = DataLoader(pictures, batch_size=2, collate_fn=lambda pairs: tuple(map(list, zip(*pairs, strict=True))))
    return {"student": student, "teacher": teacher, "loader": loader}


def test_the_guide_has_a_block_a_kind_of_loop():
    assert [title for title, _ in BLOCKS] == [
        "Plain PyTorch", "Mixed precision", "Accelerate", "DistributedDataParallel", "Lightning",
    ]  # fmt: skip


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
@pytest.mark.filterwarnings("ignore")
def test_a_loop_of_the_guide_runs_and_learns(title, code, nets, monkeypatch, tmp_path, free_port):
    if title == "Lightning":
        pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    for key, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port}.items():
        if title == "DistributedDataParallel":
            monkeypatch.setenv(key, str(value))
    weights = [p.detach().clone() for p in nets["student"].parameters() if p.requires_grad]
    teacher = [p.detach().clone() for p in nets["teacher"].parameters()]
    exec(compile(code, "own_loop.md", "exec"), {**nets, "__name__": "own_loop"})
    after = [p for p in nets["student"].parameters() if p.requires_grad]
    assert len(after) == len(weights) and all(not torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(teacher, nets["teacher"].parameters(), strict=True))


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
