"""Configs: YAML, overrides, and everything that can be wrong with them in one line."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from detkt.base.errors import InputError
from detkt.cli.shared import training_config, training_parser
from detkt.config import Config, DataConfig, load_config, load_data_config, save_config
from detkt.methods import method_config


@pytest.fixture
def written(tmp_path):
    """``written(text)``: the path of a config file with that content."""

    def write(text, name="c.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refused(path, *overrides):
    """The one-line message with which *path* is refused."""
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what is read ----------------------------------------------------------------------------------------------------


def test_a_file_fills_the_defaults(written):
    text = "data: {root: /d, year: 2012, classes: [a, b]}\ntrain: {epochs: 3, milestones: [0.5, 0.8]}\n"
    config = load_config(written(text, "mine.yaml"))
    assert config.name == "mine"
    assert (config.data.root, config.data.year, config.data.classes) == ("/d", "2012", ["a", "b"])
    assert (config.train.epochs, config.train.milestones) == (3, [0.5, 0.8])
    rest = Config(name="mine")
    assert (config.train.batch_size, config.student, config.methods) == (rest.train.batch_size, rest.student, {})


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_all_defaults(written, text):
    assert load_config(written(text)) == Config(name="c")


def test_overrides_come_after_the_file_the_last_one_last(written):
    path = written("train: {epochs: 3, seed: 1}\nmethods: {ktan: {beta: 2.0}}\n")
    overrides = ["train.epochs=5", "train.epochs=7", "data.scale=[0.5, 2]", "student.options.min_size=64"]
    config = load_config(path, [*overrides, "methods.ktan.alpha=0.1", "data.root=null", "name=a=b"])
    assert (config.train.epochs, config.train.seed) == (7, 1)
    assert config.data.scale == [0.5, 2.0]
    assert config.student.options == {"min_size": 64}
    assert config.methods == {"ktan": {"beta": 2.0, "alpha": 0.1}}
    assert config.data.root is None
    assert config.name == "a=b"


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "+1e-3", "1.e-3", "0.1e-2", ".001", "0.001"])
def test_numbers_without_a_point_are_numbers(written, number):
    """PyYAML reads 1e-3 as a word, which an untyped option would pass on."""
    path = written(f"student: {{options: {{box_score_thresh: {number}}}}}")
    config = load_config(path, [f"train.lr_per_image={number}"])
    assert config.student.options["box_score_thresh"] == pytest.approx(0.001)
    assert config.train.lr_per_image == pytest.approx(0.001)


def test_words_that_look_like_numbers_stay_words(written):
    config = load_config(written("data: {train: 1e-3x, root: '1e-3'}\nname: e5\n"))
    assert (config.data.train, config.data.root, config.name) == ("1e-3x", "1e-3", "e5")


def test_whole_numbers_are_taken_for_fractions_without_a_warning(written, recwarn):
    assert load_config(written("train: {clip_norm: 0}"), ["train.weight_decay=0"]).train.clip_norm == 0.0
    assert not recwarn.list


def test_anchors_share_a_section_and_may_be_merged(written):
    text = "student: {options: &o {min_size: 64, max_size: 96}}\nteacher: {options: {<<: *o, min_size: 80}}\n"
    config = load_config(written(text), ["student.options.max_size=128"])
    assert config.student.options == {"min_size": 64, "max_size": 128}
    assert config.teacher.options == {"min_size": 80, "max_size": 96}


def test_round_trip(written, tmp_path):
    text = (
        "data: {root: 'a: #b', classes: ['on', '1', '1e-3', ü], shapes: {seed: 3, classes: [disc]}}\n"
        "student: {checkpoint: null, options: {anchor_sizes: [16, 32], min_size: 64}}\n"
        "train: {lr_per_image: 1e-5, milestones: []}\n"
        "methods: {ktan: {preset: paper, beta: 0.25}, kd: {}}\n"
    )
    config = load_config(written(text), ["method=ktan+kd", "name='007'"])
    assert config.data.classes == ["on", "1", "1e-3", "ü"]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert asdict(load_config(tmp_path / "saved.yaml")) == asdict(config)


def test_sections_of_methods_and_presets(written):
    config = load_config(written(""), ["methods.ktan.preset=paper", "methods.ktan.alpha=0.25"])
    settings = method_config("ktan", config.methods["ktan"])
    assert (settings.alpha, settings.beta, settings.normalize, settings.adversary) == (0.25, 0.5, False, "map")
    assert method_config("ktan").beta != 0.5


# -- what is refused -------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path, written):
    assert "nope.yaml: No such file" in refused(tmp_path / "nope.yaml")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "binary.yaml: not a text file" in refused(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  epochs: 3\n bad: 1\n", "c.yaml, line 3: "),
        ("train: {epochs: 3\n\n", "c.yaml, line 3: "),
        ("a: b: c\n", "c.yaml, line 1: mapping values are not allowed"),
        ("train: *missing\n", "c.yaml, line 1: found undefined alias"),
        ("train: !!python/object/apply:os.system ['true']\n", "c.yaml, line 1: could not determine a constructor"),
        ("train: {epochs: 3}\ndata: {}\ntrain: {seed: 1}\n", "c.yaml, line 3: key 'train' is given twice"),
        ("train:\n  epochs: 3\n  epochs: 4\n", "c.yaml, line 3: key 'epochs' is given twice"),
        ("? [a]\n: b\n", "c.yaml, line 1: found unhashable key"),
        ("a: 1\n---\nb: 2\n", "c.yaml, line 2: but found another document"),
        ("- train\n- data\n", "expected 'key: value' lines, found a list"),
        ("just words\n", "expected 'key: value' lines, found a str"),
        ("[" * 3000, "nested too deeply"),
        ("a\x00b: 1\n", "c.yaml"),
    ],
)
def test_files_that_are_no_config(written, text, message):
    assert message in refused(written(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tran: {}\n", "unknown key 'tran' (did you mean 'train'?)"),
        ("train: {epoch: 3}\n", "unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ("1: 2\n", "unknown key '1'; there are: name, method, role, data, student, teacher, train, methods, paper"),
        ("methods: {ktann: {}}\n", "unknown method 'ktann' (did you mean 'ktan'?)"),
        ("methods: {ktan: {betta: 1}}\n", "unknown key 'methods.ktan.betta' (did you mean 'beta'?)"),
        ("methods: {ktan: {beta: high}}\n", "methods.ktan.beta is 'high': it must be a number"),
        ("methods: {mgd: {cells: 1.5}}\n", "methods.mgd.cells is 1.5: it must be a whole number or null"),
        ("methods: {ktan: {preset: papers}}\n", "unknown methods.ktan.preset 'papers' (did you mean 'paper'?)"),
        ("methods: {ktan: 3}\n", "ktan"),
        ("methods: [ktan]\n", "'methods'"),
        ("method: KTAN\n", "unknown method 'KTAN' (did you mean 'ktan'?)"),
        ("method: ktna\n", "unknown method 'ktna' (did you mean 'ktan'?)"),
        ("method: ktan+ktan\n", "names a method twice"),
        ("role: techer\n", "unknown role 'techer' (did you mean 'teacher'?)"),
        ("data: {format: vok}\n", "unknown data.format 'vok' (did you mean 'voc'?)"),
        ("data: 3\n", "'data'"),
        ("data:\n", "'data'"),
        ("train: {precision: fp8}\n", "unknown precision 'fp8'"),
        ("train: {epochs: many}\n", "'train.epochs' is 'many': it must be a whole number"),
        ("train: {epochs: 1.5}\n", "'train.epochs' is 1.5: it must be a whole number"),
        ("train: {epochs: [3]}\n", "'train.epochs' is [3]: it must be a whole number"),
        ("train: {milestones: 0.5}\n", "'train.milestones': "),
        ("train: {milestones: [half]}\n", "'train.milestones': "),
        ("data: {keep_difficult: perhaps}\n", "'data.keep_difficult' is 'perhaps': it must be true or false"),
        ("data: {root: {a: b}}\n", "'data.root' is {'a': 'b'}: it must be text or null"),
        ("data: {root: '${nowhere}'}\n", "nowhere"),
        ("data: {root: '???'}\n", "root"),
    ],
)
def test_keys_and_types_that_do_not_fit(written, text, message):
    found = refused(written(text))
    assert message in found
    assert "c.yaml" in found or "unknown" in found or "methods." in found or "twice" in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("lr_per_image", 0),
        ("lr_per_image", ".nan"),
        ("lr_per_image", ".inf"),
        ("gamma", 0),
        ("log_every", 0),
        ("checkpoint_every", 0),
        ("workers", -1),
        ("warmup_steps", -1),
        ("seed", -1),
        ("momentum", -0.5),
        ("weight_decay", -1),
        ("clip_norm", -1),
        ("milestones", "[0.5, 1.5]"),
        ("milestones", "[0]"),
        ("poly_power", "-1"),
    ],
)
def test_values_out_of_range_are_named(written, key, value):
    message = refused(written(""), f"train.{key}={value}")
    assert message.startswith(f"'train.{key}' is ")
    assert "must be" in message


@pytest.mark.parametrize("value", ["[1]", "[0, 1]", "[2, 1]", "[-1, 1]"])
def test_a_zoom_that_is_no_range_is_named(written, value):
    assert refused(written(""), f"data.scale={value}").startswith("'data.scale' is ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "'train.epochs' is not an override; write section.key=value"),
        ("=3", "'=3' is not an override"),
        ("train.epoch=3", "override: unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ("train.epochs.x=3", "'train.epochs"),
        ("train=3", "'train'"),
        ("train.epochs={a", "override 'train.epochs={a': the value is not YAML"),
        ("train.epochs=three", "override: 'train.epochs' is 'three': it must be a whole number"),
        ("methods.ktan.betta=1", "unknown key 'methods.ktan.betta' (did you mean 'beta'?)"),
    ],
)
def test_overrides_that_do_not_fit(written, override, message):
    assert message in refused(written(""), override)


@pytest.mark.parametrize("key", ["flip", "color"])
@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_shares_lie_between_0_and_1(written, key, value):
    assert refused(written(""), f"data.{key}={value}") == f"'data.{key}' is {value}: it must be in [0, 1]"


def test_a_teacher_begins_where_it_is_asked_to():
    def checkpoint(*flags):
        arguments = training_parser("train-det", "", "", "configs/shapes.yaml").parse_intermixed_args(
            ["--role", "teacher", "--method", "none", *flags]
        )
        return training_config(arguments, "configs/shapes.yaml")[0].teacher.checkpoint

    assert checkpoint() is None  # the config's own teaches students
    assert (
        checkpoint("teacher.checkpoint=runs/earlier") == checkpoint("--student-init", "runs/earlier") == "runs/earlier"
    )


def test_the_data_of_a_run_are_read_without_running_its_method(written, tmp_path):
    method = tmp_path / "evil.py"
    method.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = written(f"method: {method}:Evil\ndata: {{format: coco, boxes: refuse}}\n")
    assert load_data_config(config) == DataConfig(format="coco", boxes="refuse")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError):
        load_config(config)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {exif: 3}", "unknown data.exif '3'"),
        ("data: {boxs: clip}", "unknown key 'data.boxs'.*boxes"),
        ("data: {root: '${nowhere}'}", "nowhere"),
        ("- data", "expected 'key: value' lines"),
    ],
)
def test_the_data_of_a_run_are_checked(written, text, message):
    with pytest.raises(InputError, match=message):
        load_data_config(written(text))
