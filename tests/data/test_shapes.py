"""The drawn data set: exact labels, reproducible bytes, a VOC folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.data import shapes_drawing as drawing
from detkt.data.shapes import CLASSES, ShapeObject, ShapesConfig, draw_scene, scenes, write_shapes
from detkt.data.voc import VOCDetection

BARE = {"max_lookalikes": 0, "max_strokes": 0, "max_noise": 0.0, "max_blur": 0.0}
SMALL = ShapesConfig(train=6, test=4, val=2)


@pytest.fixture
def white_on_black(monkeypatch):
    """White objects on black, no lighting: a pixel's value is 255 times how far it is covered."""
    monkeypatch.setattr(drawing, "background", lambda rng, size: np.zeros((size, size, 3), np.uint8))
    monkeypatch.setattr(drawing, "_colour", lambda rng: np.full(3, 255, np.float32))
    monkeypatch.setattr(drawing, "develop", lambda rng, image, blur, noise: image)
    paint = drawing.paint

    def paint_without_rim(rng, image, sprite, contrast):
        paint(rng, image, dataclasses.replace(sprite, rim=np.zeros_like(sprite.rim)), contrast)

    monkeypatch.setattr(drawing, "paint", paint_without_rim)


def draw(config: ShapesConfig, number: int) -> tuple[np.ndarray, list[ShapeObject]]:
    return draw_scene(np.random.default_rng((0, 99, number)), config)


def covered_box(image: np.ndarray) -> tuple[int, ...]:
    """1-based inclusive box of the pixels covered by a quarter or more, one pixel at a time."""
    rows, columns = np.nonzero(image[..., 0] >= 255 / 4)
    return columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("name", CLASSES)
def test_box_is_tight_on_an_object_drawn_alone(name, white_on_black):
    config = ShapesConfig(classes=(name,), max_objects=1, **BARE)
    cut = 0
    for number in range(25):
        image, (found,) = draw(config, number)
        assert found.box == covered_box(image)
        size = max(found.box[2] - found.box[0], found.box[3] - found.box[1]) + 1
        if found.truncated:
            cut += 1
            assert found.visible < 1 and (1 in found.box[:2] or config.image_size in found.box[2:])
        else:
            assert found.visible == 1 and config.min_size - 2 <= size <= config.max_size + 2
    assert 1 <= cut <= 20  # some are cut by the border, and not all


def test_a_shape_is_drawn_where_it_is(white_on_black):
    square = np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 44.5], [10.0, 44.5]])
    sprite = drawing.rasterise([square], rim=1.0, hollow=False)
    whole = np.zeros((64, 64), np.float32)
    place, part = sprite.window(64)
    whole[place] = sprite.coverage[part]
    expected = np.zeros((64, 64), np.float32)
    expected[20:44, 10:30] = 1
    expected[44, 10:30] = 0.5
    # OpenCV fills the sub-pixels that an edge touches, so a side may gain one of four
    assert np.abs(whole - expected).max() <= 0.27
    np.testing.assert_array_equal(whole[21:43, 11:29], 1)


def test_visible_share_counts_what_lies_over_an_object(monkeypatch):
    """Every object in one flat colour of its own: what is left of that colour is what can be seen."""
    config = ShapesConfig(min_objects=5, max_objects=6, max_size=60, contrast=0, min_visible=0.5, **BARE)
    masks = []

    def paint(rng, image, sprite, contrast):
        place, part = sprite.window(len(image))
        image[place][sprite.coverage[part] >= 0.25] = len(masks) + 1
        masks.append(int((sprite.coverage >= 0.25).sum()))

    monkeypatch.setattr(drawing, "background", lambda rng, size: np.zeros((size, size, 3), np.uint8))
    monkeypatch.setattr(drawing, "develop", lambda rng, image, blur, noise: image)
    monkeypatch.setattr(drawing, "paint", paint)
    hidden = difficult = 0
    for number in range(50):
        masks.clear()
        image, objects = draw(config, number)
        assert len(masks) == len(objects) >= 1
        for index, (found, area) in enumerate(zip(objects, masks, strict=True)):
            seen = int((image[..., 0] == index + 1).sum()) / area
            assert found.visible == pytest.approx(seen)
            assert found.difficult == (seen < config.min_visible)
            hidden += seen < 0.9 and not found.truncated
            difficult += found.difficult
    assert hidden > 20 and difficult > 2


def test_boxes_lie_inside_and_classes_are_balanced():
    config = ShapesConfig(train=120)
    counts = dict.fromkeys(config.classes, 0)
    for _, image, objects in scenes(config, "trainval"):
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert 1 <= len(objects) <= config.max_objects
        for found in objects:
            x1, y1, x2, y2 = found.box
            assert 1 <= x1 < x2 <= 128 and 1 <= y1 < y2 <= 128
            counts[found.name] += 1
    mean = np.mean(list(counts.values()))
    assert all(abs(count - mean) < 5 * np.sqrt(mean) for count in counts.values()), counts


def test_colour_says_nothing_about_the_class():
    """The mean colours of two classes' boxes differ by no more than chance."""
    config = ShapesConfig(train=150, image_size=64, classes=("square", "disc"), **BARE)
    means: dict[str, list] = {"square": [], "disc": []}
    for _, image, objects in scenes(config, "trainval"):
        for found in objects:
            x1, y1, x2, y2 = found.box
            means[found.name].append(image[y1 - 1 : y2, x1 - 1 : x2].mean(axis=(0, 1)))
    square, disc = (np.array(values) for values in means.values())
    error = np.sqrt(square.var(axis=0) / len(square) + disc.var(axis=0) / len(disc))
    assert (np.abs(square.mean(axis=0) - disc.mean(axis=0)) < 4 * error).all()


def test_scenes_do_not_depend_on_how_many_are_drawn():
    few, more = (list(scenes(ShapesConfig(train=n), "trainval")) for n in (2, 4))
    for (name, image, objects), (same_name, same_image, same_objects) in zip(few, more[:2], strict=True):
        assert name == same_name and objects == same_objects
        np.testing.assert_array_equal(image, same_image)


def test_seeds_splits_and_numbers_give_different_scenes():
    drawn = [
        image.tobytes()
        for seed in (0, 1)
        for split in ("trainval", "test", "val")
        for _, image, _ in scenes(ShapesConfig(train=3, test=3, val=3, seed=seed), split)
    ]
    assert len(set(drawn)) == 18


def test_the_same_config_writes_the_same_bytes(tmp_path):
    first, second = (write_shapes(tmp_path / name, SMALL) for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 12 + 12 + 3 + 1
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)


def test_voc_round_trip(tmp_path):
    root = write_shapes(tmp_path / "deep" / "shapes", SMALL)
    for split, count in (("trainval", 6), ("test", 4), ("val", 2)):
        drawn = list(scenes(SMALL, split))
        listed = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        assert listed == [name for name, _, _ in drawn] and len(listed) == count
        for name, image, objects in drawn:
            xml = ElementTree.parse(root / "Annotations" / f"{name}.xml").getroot()
            assert xml.findtext("filename") == f"{name}.jpg"
            assert [int(xml.findtext(f"size/{key}")) for key in ("height", "width", "depth")] == [128, 128, 3]
            assert len(xml.findall("object")) == len(objects)
            for node, found in zip(xml.findall("object"), objects, strict=True):
                assert node.findtext("name") == found.name
                assert bool(int(node.findtext("truncated"))) == found.truncated
                assert bool(int(node.findtext("difficult"))) == found.difficult
                sides = ("xmin", "ymin", "xmax", "ymax")
                assert tuple(int(node.findtext(f"bndbox/{side}")) for side in sides) == found.box
            stored = cv2.imread(str(root / "JPEGImages" / f"{name}.jpg"))[..., ::-1]
            low_stored, low = (cv2.blur(x.astype(np.float32), (8, 8)) for x in (stored, image))
            assert np.abs(low_stored - low).mean() < 4  # the same colours in the same order, but for JPEG


def test_the_package_reads_it(tmp_path):
    dataset = VOCDetection(write_shapes(tmp_path / "shapes", SMALL), "trainval", classes=CLASSES)
    annotations = dataset.annotations()
    for name, _, objects in scenes(SMALL, "trainval"):
        np.testing.assert_array_equal(annotations[name]["boxes"], [found.box for found in objects])
        assert list(annotations[name]["labels"]) == [found.name for found in objects]


def test_a_complete_folder_is_left_alone(tmp_path):
    root = write_shapes(tmp_path / "shapes", SMALL)
    picture = root / "JPEGImages" / "test_000000.jpg"
    before = picture.stat().st_mtime_ns
    assert write_shapes(root, SMALL, progress=lambda *_, **__: pytest.fail("drew again")) == root
    assert picture.stat().st_mtime_ns == before


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_nothing(tmp_path, interruption):
    def progress(iterable, total):
        assert total == 12
        for number, item in enumerate(iterable):
            if number == 7:
                raise interruption
            yield item

    with pytest.raises(interruption):
        write_shapes(tmp_path / "shapes", SMALL, progress)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_faster(tmp_path):
    root = tmp_path / "shapes"

    def progress(iterable, total):
        yield from iterable
        write_shapes(root, SMALL)

    assert write_shapes(root, SMALL, progress) == root
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(list((root / "JPEGImages").iterdir())) == 12


def test_an_empty_folder_or_a_link_to_one_is_filled(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    write_shapes(tmp_path / "link", SMALL)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "shapes.json").is_file()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no complete set"):
        write_shapes(tmp_path, SMALL)
    with pytest.raises(InputError, match=r"notes\.txt"):
        write_shapes(tmp_path / "notes.txt", SMALL)
    with pytest.raises(InputError, match="cannot write the shapes"):
        write_shapes(tmp_path / "notes.txt" / "shapes", SMALL)
    (tmp_path / "shapes.json").write_text("[]")
    with pytest.raises(InputError, match="holds no complete set"):
        write_shapes(tmp_path, SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_config_or_generator_is_refused_by_name(tmp_path):
    root = write_shapes(tmp_path / "shapes", SMALL)
    with pytest.raises(InputError, match=r"seed 0 \(asked for: 5\): remove it"):
        write_shapes(root, dataclasses.replace(SMALL, seed=5))
    record = json.loads((root / "shapes.json").read_text())
    (root / "shapes.json").write_text(json.dumps({**record, "generator": 0}))
    with pytest.raises(InputError, match=r"generator 0 \(asked for: \d+\)"):
        write_shapes(root, SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("disk",)}, "'disk' (did you mean 'disc'?)"),
        ({"classes": ()}, "at least one"),
        ({"classes": ("disc", "disc")}, "each once"),
        ({"train": -1}, "must not be negative"),
        ({"val": -1}, "must not be negative"),
        ({"seed": -1}, "must not be negative"),
        ({"min_objects": 0}, "min_objects"),
        ({"min_size": 70.0}, "min_size"),
        ({"image_size": 32}, "max_size <= image_size"),
        ({"contrast": 200.0}, "contrast"),
        ({"max_noise": float("nan")}, "max_noise"),
        ({"min_visible": 1.5}, "min_visible"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError) as error:
        ShapesConfig(**settings)
    assert message in str(error.value) and "\n" not in str(error.value)
