"""The report in headless Chromium, opened from disk: filters, sorting, slider and zoom do what they say.

What the page shows is compared with `detkt.visualization.matching.compare` at the same threshold, and after each test
the browser's console must be empty. Skipped where Chromium, its driver or selenium is not installed.
"""

from __future__ import annotations

import shutil

import pytest
from report_scene import EVIL_CLASS, make_scene

from detkt.visualization.matching import DISTILLED, STUDENT, choose_pictures
from detkt.visualization.report import count_cells
from detkt.visualization.tables import change_tables

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]

KINDS = ("gained", "lost", "removed", "new")
# Numbers of the cards, each with the kinds of its boxes, in the order of the page.
CARDS = """return [...document.querySelectorAll("#gallery > li")].map((card) => [Number(card.dataset.number),
  [...card.querySelectorAll("svg .mark")].map((mark) => mark.classList[1])])"""
CELLS = """return Object.fromEntries([...document.querySelectorAll("tr[data-row]")].map((row) => [row.dataset.row,
  Object.fromEntries([...row.querySelectorAll("[data-count]")].map((c) => [c.dataset.count, Number(c.textContent)]))]))"""
PANELS = """return [...document.querySelectorAll("#zoom figure")].map((figure) => [figure.querySelector("b").textContent,
  figure.querySelector("span").textContent,
  [...figure.querySelectorAll(".mark")].map((mark) => mark.classList[1]),
  [...figure.querySelectorAll(".tag")].map((tag) => tag.textContent),
  [...figure.querySelectorAll(".mark .line")].map((r) => ["x", "y", "width", "height"].map((n) => +r.getAttribute(n)))])"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def page(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return scene.write(folder).as_uri()


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "force-prefers-reduced-motion"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, freshly opened at 1440 x 900; what the console says fails the test."""
    size = {"width": 1440, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get(page)
    yield chromium
    assert chromium.get_log("browser") == []


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def set_threshold(browser, value, slider=".bar .slider"):
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        find(browser, slider),
        value,
    )


def boxes(changes):
    return sorted(kind for kind in KINDS for _ in getattr(changes, kind))


def changed(changes, kinds=KINDS):
    return sum(len(getattr(changes, kind)) for kind in kinds)


def test_slider_redraws_boxes_and_counts(browser, scene):
    find(browser, ".bar .slider").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert find(browser, ".bar .score").text == "0.52"
    drawn = {}
    for threshold in (0.52, 0.1, 0.3, 0.7, 0.97):
        if threshold != 0.52:
            set_threshold(browser, threshold)
        comparison = scene.compare(threshold)
        pictures = list(comparison.pictures.values())
        cards = browser.execute_script(CARDS)
        assert {number: sorted(kinds) for number, kinds in cards} == dict(enumerate(map(boxes, pictures)))
        totals = [changed(pictures[number]) for number, _ in cards]
        assert totals == sorted(totals, reverse=True)
        drawn[threshold] = sum(totals)
        tables = change_tables(comparison)
        rows = {f"class:{n}": tables["per_class"][name] for n, name in enumerate(comparison.classes)}
        rows |= {f"size:{n}": tables["per_size"][size] for n, size in enumerate(("small", "medium", "large"))}
        rows |= {f"kind:{kind}": row for kind, row in tables["per_error"].items()} | {"total": tables["total"]}
        assert browser.execute_script(CELLS) == {key: count_cells(row) for key, row in rows.items()}
        assert {one.text for one in browser.find_elements(By.CSS_SELECTOR, ".score")} <= {f"{threshold:.2f}", ""}
        tiles = [find(browser, f".tiles [data-count={kind}]").text for kind in KINDS]
        assert tiles == [str(tables["total"][kind]) for kind in KINDS]
    assert len(set(drawn.values())) == len(drawn)


def test_filters(browser, scene):
    comparison = scene.compare()
    pictures = list(comparison.pictures.values())
    everything = browser.execute_script(CARDS)
    assert len(everything) == len(pictures) == 24
    assert find(browser, "#status").text == "24 of 24 pictures"

    def shown():
        numbers = [number for number, _ in browser.execute_script(CARDS)]
        assert find(browser, "#status").text == f"{len(numbers)} of 24 pictures"
        return numbers

    def expected(*kinds):
        numbers = [number for number, changes in enumerate(pictures) if changed(changes, kinds)]
        return sorted(numbers, key=lambda n: (-changed(pictures[n], kinds), -changed(pictures[n], ("gained", "lost"))))

    find(browser, "input[value=gained]").click()
    assert shown() == expected("gained")
    find(browser, "input[value=lost]").send_keys(Keys.SPACE)
    assert shown() == expected("gained", "lost")
    find(browser, "input[value=gained]").click()
    assert 0 < len(shown()) < 12
    assert shown() == expected("lost")
    # Of a class: only its changes count, and only they are drawn.
    Select(find(browser, "select[name=class]")).select_by_visible_text("cross")
    lost = {n: [c.labels[k] for k in c.lost].count("cross") for n, c in enumerate(pictures)}
    assert sorted(shown()) == [n for n, count in lost.items() if count]
    assert all(kinds.count("lost") == lost[number] for number, kinds in browser.execute_script(CARDS))
    find(browser, "input[value=lost]").click()
    holding = [
        n
        for n, c in enumerate(pictures)
        if "cross" in [*c.labels, *(label for model in c.models.values() for label in model.labels)]
    ]
    assert sorted(shown()) == holding
    assert len(holding) < 24
    find(browser, "#filters [type=reset]").click()
    assert browser.execute_script(CARDS) == everything
    # The largest change first, as in diff.png; most improved, most worsened first; as in the data set.
    assert [scene.dataset.ids[number] for number in shown()] == choose_pictures(comparison, 24)
    order = Select(find(browser, "select[name=order]"))
    better = [changed(changes, ("gained", "removed")) for changes in pictures]
    worse = [changed(changes, ("lost", "new")) for changes in pictures]
    order.select_by_value("better")
    assert shown() == sorted(range(24), key=lambda n: (-better[n], worse[n]))
    order.select_by_value("worse")
    assert shown() == sorted(range(24), key=lambda n: (-worse[n], better[n]))
    order.select_by_value("data")
    assert shown() == list(range(24))
    find(browser, "input[value=gained]").click()
    set_threshold(browser, 1)
    assert shown() == []
    assert find(browser, "#none").is_displayed()


def test_tables_sort_by_mouse_and_keyboard(browser, scene):
    classes = scene.dataset.classes
    rows = change_tables(scene.compare())["per_class"]

    def names(table):
        return [one.text for one in browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody:first-of-type th")]

    def heading(table, text, number=0):
        found = browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th button")
        return [button for button in found if button.text == text][number]

    assert names("changes") == classes
    heading("changes", "gained").click()
    assert find(browser, "#changes th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert names("changes") == sorted(classes, key=lambda name: -rows[name]["gained"])
    heading("changes", "gained").send_keys(Keys.ENTER)
    assert find(browser, "#changes th[aria-sort]").get_attribute("aria-sort") == "ascending"
    gained = [rows[name]["gained"] for name in names("changes")]
    assert gained == sorted(gained)
    # It stays sorted when the slider changes the counts.
    set_threshold(browser, 0.2)
    later = change_tables(scene.compare(0.2))["per_class"]
    gained = [later[name]["gained"] for name in names("changes")]
    assert gained == sorted(gained)
    heading("changes", "class").send_keys(Keys.SPACE)
    assert names("changes") == sorted(classes)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#changes th[aria-sort]")) == 1
    ap = scene.scored[STUDENT].result.per_class
    heading("ap", "student").click()
    assert names("ap") == sorted(classes, key=lambda name: -ap[name])
    find(browser, "#ap [value=area]").click()
    shown = [cell for cell in browser.find_elements(By.CSS_SELECTOR, "#ap tfoot td") if cell.is_displayed()]
    assert {cell.get_attribute("class").split()[0] for cell in shown} == {"area"}


def test_zoom_shows_the_models_side_by_side(browser, scene):
    pictures = list(scene.compare().pictures.values())
    numbers = [number for number, _ in browser.execute_script(CARDS)]
    find(browser, f"#gallery li[data-number='{numbers[1]}'] button").click()
    assert find(browser, "#zoom").is_displayed()

    def check(place, pictures=pictures):
        changes = pictures[numbers[place]]
        assert find(browser, "#zoom-title").text == changes.picture
        assert find(browser, "#zoom-place").text == f"{place + 1} of 24"
        panels = browser.execute_script(PANELS)
        assert [panel[0] for panel in panels] == ["student", "distilled (ktan)", "teacher"]
        for (role, judged), (_, text, kinds, tags, rects) in zip(changes.models.items(), panels, strict=True):
            n_found = (judged.found & ~changes.difficult).sum()
            n_objects = (~changes.difficult).sum()
            assert text.startswith(f"found {n_found} of {n_objects} object")
            assert len(kinds) == len(tags) == len(judged.labels) + n_objects - n_found
            assert kinds.count("missed") == n_objects - n_found
            special = {STUDENT: ("lost", "removed"), DISTILLED: ("gained", "new")}.get(role, ())
            assert all(kinds.count(kind) == len(getattr(changes, kind)) for kind in special)
            assert not {*KINDS} - {*special} & {*kinds}
            errors = len(judged.errors) - sum(kinds.count(kind) for kind in ("removed", "new"))
            assert kinds.count("error") == errors
            for label, score, verdict in zip(judged.labels, judged.scores, judged.verdicts, strict=True):
                why = f" · {verdict}" if verdict != "correct" else ""
                assert any(tag.endswith(f" {label} {score:.2f}{why}") for tag in tags)
            corners = judged.boxes - [1, 1, 0, 0]
            corners[:, 2:] -= corners[:, :2]
            expected = [pytest.approx(box, abs=0.11) for box in corners.tolist()]
            assert all(box in rects for box in expected)

    check(1)
    steps = browser.switch_to.active_element
    steps.send_keys(Keys.ARROW_RIGHT)
    check(2)
    steps.send_keys(Keys.ARROW_LEFT)
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    check(0)
    assert not find(browser, "#zoom-previous").is_enabled()
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    check(0)
    find(browser, "#zoom-next").click()
    check(1)
    # The slider in the dialog is the page's, and its arrow keys do not turn pages.
    find(browser, "#zoom .slider").send_keys(Keys.ARROW_LEFT)
    assert browser.execute_script("return document.querySelector('.bar .slider').value") == "0.49"
    check(1, list(scene.compare(0.49).pictures.values()))
    set_threshold(browser, 0.5, "#zoom .slider")

    # One model alone, larger, also from picture to picture; then all again.
    def widths():
        stages = browser.find_elements(By.CSS_SELECTOR, "#zoom .stage")
        return [stage.rect["width"] for stage in stages if stage.is_displayed()]

    before = widths()
    assert len(before) == 3
    find(browser, "#zoom figure:nth-child(2) button").send_keys(Keys.ENTER)
    assert len(widths()) == 1 and widths()[0] > 1.3 * before[1]
    assert find(browser, "#zoom figure:nth-child(2)").is_displayed()
    assert browser.switch_to.active_element.text == "all models"
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert find(browser, "#zoom-place").text == "3 of 24" and len(widths()) == 1
    find(browser, "#zoom-previous").click()
    find(browser, "#zoom figure:nth-child(2) button").click()
    assert widths() == before
    assert browser.switch_to.active_element.accessible_name == "Enlarge distilled (ktan)"
    find(browser, "#zoom-labels").click()
    assert not find(browser, "#zoom .tag").is_displayed()
    # The focus stays in the dialog, and returns to the card of the picture seen last.
    find(browser, "#zoom-title").send_keys(Keys.TAB)
    for _ in range(12):
        assert browser.execute_script("return document.activeElement.closest('#gallery, #filters')") is None
        browser.switch_to.active_element.send_keys(Keys.TAB)
    find(browser, "#zoom-close").send_keys(Keys.ESCAPE)
    assert not find(browser, "#zoom").is_displayed()
    focused = browser.execute_script("return document.activeElement.closest('li').dataset.number")
    assert focused == str(numbers[1])
    assert "Compare the models" in browser.switch_to.active_element.get_attribute("aria-label")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert find(browser, "#zoom").is_displayed()
    find(browser, "#zoom-close").click()
    assert not find(browser, "#zoom").is_displayed()


def test_names_are_text_and_all_is_labelled(browser):
    assert "harm" not in browser.title
    assert EVIL_CLASS in [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#changes tbody th")]
    assert any(EVIL_CLASS in one.text for one in browser.find_elements(By.CSS_SELECTOR, ".tag"))
    assert browser.find_elements(By.CSS_SELECTOR, "main script, dialog script") == []
    for control in browser.find_elements(By.CSS_SELECTOR, "button, input, select, dialog, [role=region]"):
        if control.is_displayed():
            assert control.accessible_name.strip()
    assert browser.execute_script(
        "return [...document.images].every((image) => !image.complete || image.naturalWidth > 0)"
    )


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_page_fits_the_screen(browser, width):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()
    across = "const e = arguments[0]; return [e.scrollWidth, e.clientWidth]"
    scroll, client = browser.execute_script(across, find(browser, "html"))
    assert scroll == client
    # The wide table fades at an edge that cuts numbers off, and no longer once it is scrolled there.
    frame = find(browser, "#changes .scroll")
    scroll, client = browser.execute_script(across, frame)
    assert ("goes-on" in frame.get_attribute("class")) == (scroll > client)
    assert scroll > client or width > 390
    browser.execute_async_script(
        "arguments[0].scrollLeft = 9999; requestAnimationFrame(() => requestAnimationFrame(arguments[1]))", frame
    )
    assert "goes-on" not in frame.get_attribute("class")
    kinds = find(browser, "#errors .scroll")
    assert "goes-on" not in kinds.get_attribute("class")
    find(browser, "#gallery button").click()
    scroll, client = browser.execute_script(across, find(browser, "#zoom"))
    assert scroll <= client
    tops = {figure.rect["y"] for figure in browser.find_elements(By.CSS_SELECTOR, "#zoom figure")}
    assert len(tops) == {390: 3, 768: 2, 1440: 1}[width]
    outside = """const r = (e) => e.getBoundingClientRect();
      return [...document.querySelectorAll("#zoom .tag")].filter((tag) => r(tag).left < r(tag.parentNode).left - 1 ||
        r(tag).right > r(tag.parentNode).right + 1 || r(tag).top < r(tag.parentNode).top - 1).length"""
    assert browser.execute_script(outside) == 0


def test_cards_far_away_are_drawn_when_they_come_near(chromium, tmp_path):
    """More pictures than the page draws at once: after the slider moved, each shows its boxes once it is looked at."""
    scene = make_scene(tmp_path, pictures=130, evil=False)
    size = {"width": 500, "height": 400, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get(scene.write(tmp_path / "report").as_uri())
    frames = "const f = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(f, 50)))"
    assert len(chromium.execute_script(CARDS)) == 48
    for _ in range(10):
        chromium.execute_script("window.scrollTo(0, document.body.scrollHeight)")
        chromium.execute_async_script(frames)
    assert len(chromium.execute_script(CARDS)) == 130
    set_threshold(chromium, 0.2)
    pictures = list(scene.compare(0.2).pictures.values())
    order = [number for number, _ in chromium.execute_script(CARDS)]
    stale = 0
    for place in (129, 100, 60):
        chromium.execute_script("document.querySelectorAll('#gallery > li')[arguments[0]].scrollIntoView()", place)
        chromium.execute_async_script(frames)
        cards = dict(chromium.execute_script(CARDS))
        for near in {place, min(place + 1, 129)}:
            assert sorted(cards[order[near]]) == boxes(pictures[order[near]])
        stale += any(sorted(cards[number]) != boxes(pictures[number]) for number in order)
    assert stale, "not all were drawn at once"
    assert chromium.get_log("browser") == []
