"""Readers of what people and other programs write: whatever it is, it is read, or refused in one line."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.data.annotations import parse_annotation
from detkt.data.image_folder import list_pictures
from detkt.data.images import read_image, read_image_size
from detkt.data.raw_files import read_cifar, read_idx
from detkt.data.voc import VOCDetection
from detkt.engine.checkpoint import load_checkpoint, save_checkpoint
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.coco_results import read_coco_results
from detkt.evaluation.records import flatten_detections
from detkt.evaluation.voc_results import read_results
from detkt.models import load_model
from detkt.visualization.curves import read_log

fuzzed = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def only_clean_errors(read: Callable[[], object]) -> None:
    """Nothing but an InputError of one line comes out of *read*."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except InputError as error:
        assert str(error)
        assert "\n" not in str(error)


def damaged(content: bytes, *tokens: bytes) -> st.SearchStrategy[bytes]:
    """*content* with up to four pieces of it replaced by *tokens*, by other pieces of it, or by anything."""
    places = st.floats(0, 1, exclude_max=True)
    own = st.tuples(places, st.integers(0, 40)).map(lambda cut: content[int(cut[0] * len(content)) :][: cut[1]])
    inserted = st.one_of(st.sampled_from(tokens), own, st.binary(max_size=6), st.just(b""))
    edits = st.lists(st.tuples(places, st.integers(0, 12), inserted), min_size=1, max_size=4)

    def apply(changes: list[tuple[float, int, bytes]]) -> bytes:
        changed = content
        for place, length, insert in changes:
            start = int(place * len(changed))
            changed = changed[:start] + insert + changed[start + length :]
        return changed

    return st.one_of(edits.map(apply), st.binary(max_size=60))


NUMBERS = (b"-1", b"0", b"1e999", b"nan", b"-inf", b"9" * 400, b"1_0", "٣".encode(), b"\xff", b"\x00", b" ", b"\n")

XML = b"""<annotation><filename>a.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>
</object><object><name>cat</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


@fuzzed
@given(damaged(XML, b"<object>", b"</object>", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<size/>", *NUMBERS))
def test_annotations(tmp_path, content):
    (tmp_path / "a.xml").write_bytes(content)
    only_clean_errors(lambda: parse_annotation(tmp_path / "a.xml"))


@pytest.fixture(scope="module")
def voc(tmp_path_factory, voc_folder) -> Path:
    """A data set of one's own, of which a list may be written."""
    import shutil

    return shutil.copytree(voc_folder, tmp_path_factory.mktemp("fuzzed") / "voc")


@fuzzed
@given(
    damaged(b"test_000000\ntest_000001.jpg 1\n\ntest_000002 -1\n", b"../", b"/etc/passwd", b"test_000003", *NUMBERS),
    st.text(alphabet="test:+2007/. []\x00", max_size=12),
)
def test_lists_and_splits(voc, content, split):
    (voc / "ImageSets" / "Main" / "fuzzed.txt").write_bytes(content)
    only_clean_errors(lambda: VOCDetection(voc, "fuzzed"))
    only_clean_errors(lambda: VOCDetection(voc, split))


CONFIG = b"""name: tiny
method: ktan
data: {root: /data, train: trainval, classes: [a, b], scale: [0.5, 2.0], mean: []}
train:
  epochs: 2
  lr_per_image: 1e-3
  milestones: [0.5]
methods:
  ktan: {alpha: 0.5, layers: []}
"""


@fuzzed
@given(
    damaged(CONFIG, b"${train}", b"&a", b"*a", b"!!python/object:os.system", b"<<: ", b"[[", b"- ", b"???", *NUMBERS)
)
def test_configs(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    only_clean_errors(lambda: load_config(tmp_path / "c.yaml"))


@fuzzed
@given(
    st.sampled_from(["train.epochs", "data", "methods.ktan", "train", "data.classes", "", "..", "methods.kd.a.b", "x"]),
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(["${data}", "[", "{a: 1}", "null", "1e400", "!!set {a}", "${oc.env:HOME}"]),
    ),
)
def test_overrides(tmp_path, key, value):
    (tmp_path / "c.yaml").write_bytes(CONFIG)
    only_clean_errors(lambda: load_config(tmp_path / "c.yaml", [f"{key}={value}"]))


@fuzzed
@given(damaged(b"img1 0.9 1 2 30 40\nimg2 0.25 -3.5 2e1 30 40\n", b"img3", b"\t", b"\r", *NUMBERS))
def test_voc_results(tmp_path, content):
    (tmp_path / "comp4_det_test_dog.txt").write_bytes(content)

    def read():
        found = read_results(tmp_path, ["dog", "cat"])
        flatten_detections(found, {"img1": {}, "img2": {}})

    only_clean_errors(read)


RESULTS = json.dumps(
    [{"image_id": 1, "category_id": 2, "bbox": [1.5, 2, 3, 4], "score": 0.5}, {"image_id": "img2", "category_id": 1}]
).encode()
IDS = json.dumps(
    {"images": [{"id": 1, "file_name": "img1.jpg"}], "categories": [{"id": 2, "name": "dog"}], "annotations": []}
).encode()
JSON = (b"null", b"true", b"[]", b"{}", b"NaN", b'"\\ud800"', b"[" * 5000, b'"image_id":', b"1.0", b"1e3", *NUMBERS)


@fuzzed
@given(damaged(RESULTS, *JSON), st.booleans())
def test_coco_results(tmp_path, content, with_ids):
    (tmp_path / "r.json").write_bytes(content)
    (tmp_path / "ids.json").write_bytes(IDS)
    ids = coco_ids(["img1", "img2"], ["cat", "dog"], tmp_path / "ids.json" if with_ids else None)
    only_clean_errors(lambda: read_coco_results(tmp_path / "r.json", ids))


@fuzzed
@given(damaged(IDS, *JSON))
def test_coco_data_sets(tmp_path, content):
    (tmp_path / "ids.json").write_bytes(content)
    (tmp_path / "r.json").write_bytes(RESULTS)

    def read():
        read_coco_results(tmp_path / "r.json", coco_ids(["img1", "img2"], ["cat", "dog"], tmp_path / "ids.json"))

    only_clean_errors(read)


@fuzzed
@given(damaged(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 3, 4) + bytes(range(24)), b"\xff" * 4, bytes(4)))
def test_idx_files(tmp_path, content):
    for name in ("a", "a.gz"):
        (tmp_path / name).write_bytes(content)
        only_clean_errors(lambda name=name: read_idx(tmp_path / name, 3))


PICKLE = pickle.dumps({b"data": np.arange(3072, dtype=np.uint8).reshape(1, -1), b"labels": [3]}, protocol=2)


@fuzzed
@given(damaged(PICKLE[:200], b"cposix\nsystem\n", b"(", b"R.", b"b", b"\x80\x05", b"I-1\n"), st.booleans())
def test_cifar_files(tmp_path, content, python):
    """The head of the pickle is damaged; its end is the picture's bytes."""
    folder = tmp_path / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    folder.mkdir(exist_ok=True)
    (folder / ("test_batch" if python else "test_batch.bin")).write_bytes(content + PICKLE[200:])
    only_clean_errors(lambda: read_cifar(folder, "cifar10", "test"))


@pytest.fixture(scope="module")
def photo(photo_folder) -> bytes:
    return (photo_folder / "train" / "dark" / "0.png").read_bytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"])
def test_pictures(kind, tmp_path):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, kind)

    @settings(fuzzed, max_examples=60)
    @given(damaged(file.getvalue(), b"\xff\xff\xff\xff", b"IDAT", b"\xff\xd9", bytes(4)))
    def check(content):
        (tmp_path / "picture").write_bytes(content)
        only_clean_errors(lambda: read_image(tmp_path / "picture"))
        only_clean_errors(lambda: read_image_size(tmp_path / "picture"))

    check()


@settings(fuzzed, max_examples=60)
@given(st.text(max_size=8))
def test_splits_of_photos(photo_folder, split):
    only_clean_errors(lambda: list_pictures(photo_folder, split))


@settings(fuzzed, max_examples=60)
@given(st.data())
def test_model_descriptions(tiny_student, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("model", numbered=True)
    description = (tiny_student / "model.json").read_bytes()
    (folder / "model.json").write_bytes(
        data.draw(damaged(description, b"null", b"[]", b'"weights": "imagenet",', b"9" * 50))
    )
    (folder / "model.safetensors").symlink_to(tiny_student / "model.safetensors")
    only_clean_errors(lambda: load_model(folder))


@fuzzed
@given(st.data())
def test_checkpoints(tmp_path, data):
    """Without the checksum at its end, which would refuse every change."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 3, "names": ["a", None], "weights": {}})
    content = path.read_bytes()[:-16]
    path.write_bytes(data.draw(damaged(content, b"cposix\nsystem\n", b"PK\x01\x02", b"\x80\x02", bytes(8))))
    only_clean_errors(lambda: load_checkpoint(path))


@fuzzed
@given(damaged(b'{"stage": "a", "step": 1, "loss": 0.5}\n{"stage": "a", "step": 2}\n', b"null", b"[]", *NUMBERS))
def test_logs(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    only_clean_errors(lambda: read_log(tmp_path / "log.jsonl"))
