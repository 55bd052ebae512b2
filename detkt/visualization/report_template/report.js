"use strict";
// What the report does: one state, judged again and drawn again when it changes. The data (data.js) are described in
// detkt/visualization/report.py, with why judging here is right at any threshold. Names reach the page as text only.

(() => {
  const data = window.reportData;
  const KINDS = ["gained", "lost", "removed", "new"];
  // Marks are told by letter, dash pattern (style.css) and colour. Drawn in this order, the last on top.
  const GLYPHS = { missed: "?", found: "", difficult: "", error: "≠", removed: "✕", new: "!", lost: "−", gained: "+" };
  const LAYERS = Object.keys(GLYPHS);
  const PAGE = 48; // pictures that are added at once
  const STUDENT = 0;
  const DISTILLED = 1;

  const state = { threshold: data.threshold, kinds: new Set(), label: null, order: "change", limit: PAGE };
  let version = 0; // grows with every change of what the cards show
  let judged = []; // every picture at the threshold, in the order of the data set
  let shown = []; // those that pass the filters, in the chosen order
  const cards = new Map(); // picture's number -> its card, made when it is first shown
  const zoom = { numbers: [], place: 0, alone: null }; // alone: the model that is shown enlarged

  const byId = (id) => document.getElementById(id);
  const element = (tag, properties, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const svgElement = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const isError = (detection) => detection.verdict !== "correct" && detection.verdict !== "difficult";
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  function unpack(picture) {
    picture.objects = picture.objects.map(([label, size, difficult, ...box]) => {
      return { label, size, difficult: difficult === 1, box };
    });
    picture.detections = picture.detections.map((rows) =>
      rows.map(([label, size, score, verdict, object, iou, ...box]) => {
        return { label, size, score, verdict: data.verdicts[verdict], object, iou, box };
      }),
    );
  }

  // ---- judging ----

  function judge(picture) {
    const counts = (detection) => detection.score >= state.threshold;
    const models = picture.detections.map((rows) => {
      const kept = rows.filter(counts);
      const finder = new Map(); // object -> the first detection that is right about it
      for (const one of kept) if (!isError(one) && !finder.has(one.object)) finder.set(one.object, one);
      return { kept, finder, errors: kept.filter(isError) };
    });
    const [before, after] = models;
    const paired = new Set();
    for (const [i, j] of picture.pairs) {
      const pair = [picture.detections[STUDENT][i], picture.detections[DISTILLED][j]];
      if (pair.every((one) => counts(one) && !paired.has(one))) pair.forEach((one) => paired.add(one));
    }
    const only = (ours, theirs) =>
      [...ours.finder].filter(([k]) => !picture.objects[k].difficult && !theirs.finder.has(k)).map(([, one]) => one);
    const unpaired = (model) => model.errors.filter((one) => !paired.has(one));
    return {
      picture,
      models,
      gained: only(after, before),
      lost: only(before, after),
      removed: unpaired(before),
      new: unpaired(after),
    };
  }

  /** Counts of all pictures: "total", "class:0", "size:2", "kind:background" … -> counts by name. */
  function countAll() {
    const models = data.titles.map((_, m) => m);
    const found = models.map((m) => `found${m}`);
    const errors = models.map((m) => `errors${m}`);
    const keys = ["objects", ...found, ...errors, ...KINDS];
    const row = () => Object.fromEntries(keys.map((key) => [key, 0]));
    const total = row();
    const classes = data.classes.map(row);
    const sizes = data.sizes.map(row);
    const kinds = new Map(data.verdicts.map((verdict) => [verdict, row()]));
    const add = (one, size, key) => {
      total[key] += 1;
      classes[one.label][key] += 1;
      sizes[size][key] += 1;
      if (one.verdict) kinds.get(one.verdict)[key] += 1;
    };
    for (const { picture, models: judgedModels, ...changes } of judged) {
      picture.objects.forEach((object, k) => {
        if (object.difficult) return;
        add(object, object.size, "objects");
        judgedModels.forEach((model, m) => model.finder.has(k) && add(object, object.size, found[m]));
      });
      judgedModels.forEach((model, m) => model.errors.forEach((error) => add(error, error.size, errors[m])));
      for (const kind of KINDS) {
        // An object that is gained or lost has its own size, an error that of its box.
        for (const one of changes[kind]) add(one, isError(one) ? one.size : picture.objects[one.object].size, kind);
      }
    }
    const named = (name, rows) => rows.map((counts, number) => [`${name}:${number}`, counts]);
    const ofKinds = [...kinds].map(([verdict, counts]) => [`kind:${verdict}`, counts]);
    return new Map([["total", total], ...named("class", classes), ...named("size", sizes), ...ofKinds]);
  }

  /** The pictures that pass the filters, in order. Only the chosen class counts, and of the kinds the chosen ones. */
  function select() {
    const chosen = state.kinds.size ? [...state.kinds] : KINDS;
    const ofClass = (one) => state.label === null || one.label === state.label;
    const rows = judged.map((one, number) => {
      const n = Object.fromEntries(KINDS.map((kind) => [kind, one[kind].filter(ofClass).length]));
      const [better, worse] = [n.gained + n.removed, n.lost + n.new];
      const keys = {
        change: [-chosen.reduce((sum, kind) => sum + n[kind], 0), -n.gained - n.lost],
        better: [-better, worse],
        worse: [-worse, better],
        data: [0, 0],
      };
      return { one, number, changed: -keys.change[0], keys: keys[state.order] };
    });
    const holdsClass = ({ one }) => one.picture.objects.some(ofClass) || one.models.some((m) => m.kept.some(ofClass));
    return rows
      .filter((row) => (state.kinds.size ? row.changed > 0 : state.label === null || holdsClass(row)))
      .sort((a, b) => a.keys[0] - b.keys[0] || a.keys[1] - b.keys[1])
      .map((row) => row.number);
  }

  // ---- boxes and labels ----

  function makeStage(picture, alt) {
    const [width, height] = picture.size;
    const image = element("img", { src: picture.file, alt, width, height, loading: "lazy", decoding: "async" });
    const stage = element("div", { className: "stage" }, image);
    stage.style.setProperty("--ratio", width / height);
    return stage;
  }

  /** Replace the boxes on a stage by *marks*: {kind, box, text}; labels are placed by `placeTags`. */
  function drawMarks(stage, picture, marks) {
    const sorted = [...marks].sort((a, b) => LAYERS.indexOf(a.kind) - LAYERS.indexOf(b.kind));
    const boxes = sorted.map(({ kind, box: [x1, y1, x2, y2] }) => {
      const place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
      const rects = ["rim", "line"].map((name) => svgElement("rect", { class: name, ...place }));
      return svgElement("g", { class: `mark ${kind}` }, ...rects);
    });
    const [width, height] = picture.size;
    const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...boxes);
    const tags = sorted.filter((mark) => mark.text).map((mark) => {
      const tag = element("span", { className: `tag ${mark.kind}`, textContent: `${GLYPHS[mark.kind]} ${mark.text}` });
      tag.setAttribute("aria-hidden", "true");
      tag.box = mark.box.map((value, side) => value / (side % 2 ? height : width));
      return tag;
    });
    stage.replaceChildren(stage.firstChild, svg, ...tags);
  }

  /** Put each label at a corner of its box, inside the picture, where it covers least of the labels before it. */
  function placeTags(stages) {
    // First all sizes are read, then all places set, so that the page is laid out once.
    const measured = stages.map((stage) => {
      const tags = [...stage.querySelectorAll(".tag")].reverse(); // what lies on top has the first choice
      return [stage.clientWidth, stage.clientHeight, tags.map((tag) => [tag, tag.offsetWidth, tag.offsetHeight])];
    });
    for (const [width, height, tags] of measured) {
      const placed = [];
      for (const [tag, w, h] of tags) {
        const [x1, y1, x2, y2] = tag.box.map((value, side) => value * (side % 2 ? height : width));
        const rows = [y1 - h, y1, y2, y2 - h, (y1 + y2 - h) / 2];
        const beside = (first, second) => rows.flatMap((y) => [[first, y], [second, y]]);
        const corners = [...beside(x1, x2 - w), ...beside(x2, x1 - w)]; // over the box, then to its sides
        const places = corners.map(([x, y]) => {
          const left = Math.max(0, Math.min(x, width - w));
          const top = Math.max(0, Math.min(y, height - h));
          const covered = placed.reduce((sum, [px, py, pw, ph]) => {
            const across = Math.min(left + w, px + pw) - Math.max(left, px);
            const down = Math.min(top + h, py + ph) - Math.max(top, py);
            return sum + Math.max(0, across) * Math.max(0, down);
          }, 0);
          return { left, top, covered };
        });
        const best = places.reduce((least, place) => (place.covered < least.covered ? place : least));
        Object.assign(tag.style, { left: `${best.left}px`, top: `${best.top}px` });
        placed.push([best.left, best.top, w, h]);
      }
    }
  }

  const className = (one) => data.classes[one.label];

  // ---- gallery ----

  const NEAR = 800; // pixels beyond the window within which cards are drawn
  const stageOf = (card) => card.querySelector(".stage");
  const isStale = (card) => card.version !== version;
  // A card that comes near is drawn then, so that a slider that changes thousands of them need not draw them all.
  const approaching = new IntersectionObserver(
    (entries) => drawCards(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target)),
    { rootMargin: `${NEAR}px` },
  );

  function makeCard(number) {
    const picture = data.pictures[number];
    const name = element("span", { className: "picture-id", textContent: picture.id });
    const counts = element("span", { className: "counts" });
    const frame = element("span", { className: "frame" }, makeStage(picture, ""));
    const caption = element("span", { className: "caption" }, name, counts);
    const button = element("button", { type: "button" }, frame, caption);
    button.addEventListener("click", () => openZoom(number));
    const card = element("li", { className: "card" }, button);
    card.dataset.number = number;
    approaching.observe(card);
    return card;
  }

  function cardOf(number) {
    if (!cards.has(number)) cards.set(number, makeCard(number));
    return cards.get(number);
  }

  function drawCards(some) {
    const drawn = some.filter(isStale);
    drawn.forEach(drawCard);
    placeTags(drawn.map(stageOf));
  }

  function drawCard(card) {
    card.version = version;
    const one = judged[card.dataset.number];
    const drawn = (detection) => state.label === null || detection.label === state.label;
    const kept = KINDS.map((kind) => [kind, one[kind].filter(drawn)]).filter(([, list]) => list.length);
    const marks = kept.flatMap(([kind, list]) => list.map((d) => ({ kind, box: d.box, text: className(d) })));
    drawMarks(stageOf(card), one.picture, marks);
    const counts = kept.map(([kind, list]) => {
      return element("span", { className: `count ${kind}`, title: kind, textContent: `${GLYPHS[kind]}${list.length}` });
    });
    card.querySelector(".counts").replaceChildren(...counts, ...(counts.length ? [] : ["no change"]));
    const said = kept.map(([kind, list]) => `${list.length} ${kind}`).join(", ") || "no change";
    card.firstChild.setAttribute("aria-label", `Picture ${one.picture.id}: ${said}. Compare the models`);
  }

  function drawGallery() {
    shown = select();
    const page = shown.slice(0, state.limit).map(cardOf);
    byId("gallery").replaceChildren(...page);
    const isNear = (card) => {
      const { top, bottom } = card.getBoundingClientRect();
      return bottom > -NEAR && top < window.innerHeight + NEAR;
    };
    drawCards(page.filter((card, place) => place < PAGE || isNear(card)));
    byId("status").textContent = `${shown.length} of ${plural(data.pictures.length, "picture")}`;
    byId("none").hidden = shown.length > 0;
    const left = shown.length - page.length;
    byId("more").hidden = left <= 0;
    byId("more").textContent = `Show ${Math.min(PAGE, left)} more of ${left}`;
  }

  function showMore(limit = state.limit + PAGE) {
    state.limit = limit;
    drawGallery();
  }

  // ---- zoom ----

  function modelMarks(one, m) {
    const model = one.models[m];
    const special = new Map();
    const [objects, errors] = m === STUDENT ? ["lost", "removed"] : ["gained", "new"];
    if (m <= DISTILLED) for (const kind of [objects, errors]) for (const d of one[kind]) special.set(d, kind);
    const marks = model.kept.map((d) => {
      const usual = isError(d) ? "error" : d.verdict === "difficult" ? "difficult" : "found";
      const why = d.verdict === "correct" ? "" : ` · ${d.verdict}`;
      return { kind: special.get(d) ?? usual, box: d.box, text: `${className(d)} ${d.score.toFixed(2)}${why}` };
    });
    one.picture.objects.forEach((object, k) => {
      if (object.difficult || model.finder.has(k)) return;
      marks.push({ kind: "missed", box: object.box, text: className(object) });
    });
    return marks;
  }

  /** A button that shows one model's picture alone, as large as the window allows, or all of them again. */
  function enlarger(m) {
    const alone = zoom.alone === m;
    const button = element("button", { type: "button", textContent: alone ? "all models" : "enlarge" });
    if (!alone) button.setAttribute("aria-label", `Enlarge ${data.titles[m]}`);
    button.addEventListener("click", () => {
      zoom.alone = alone ? null : m;
      drawZoom();
      document.querySelectorAll("#zoom-panels button")[m].focus();
    });
    return button;
  }

  function drawZoom() {
    const number = zoom.numbers[zoom.place];
    const one = judged[number];
    const { picture } = one;
    const objects = picture.objects.map((object, k) => k).filter((k) => !picture.objects[k].difficult);
    const stages = one.models.map((_, m) => makeStage(picture, `Picture ${picture.id}, ${data.titles[m]}`));
    const panels = one.models.map((model, m) => {
      const found = objects.filter((k) => model.finder.has(k)).length;
      const text = `found ${found} of ${plural(objects.length, "object")}, ${plural(model.errors.length, "error")}`;
      const title = element("b", { textContent: data.titles[m] });
      const caption = element("figcaption", {}, title, element("span", { textContent: text }), enlarger(m));
      drawMarks(stages[m], picture, modelMarks(one, m));
      return element("figure", { hidden: zoom.alone !== null && zoom.alone !== m }, caption, stages[m]);
    });
    byId("zoom-panels").replaceChildren(...panels);
    byId("zoom-title").textContent = picture.id;
    byId("zoom-place").textContent = `${zoom.place + 1} of ${zoom.numbers.length}`;
    byId("zoom-previous").disabled = zoom.place === 0;
    byId("zoom-next").disabled = zoom.place === zoom.numbers.length - 1;
    placeTags(stages);
  }

  function openZoom(number) {
    // The list stays as it is while the dialog is open, even if the slider in it changes what passes the filters.
    Object.assign(zoom, { numbers: shown, place: shown.indexOf(number), alone: null });
    byId("zoom").showModal();
    byId("zoom-title").focus();
    drawZoom();
  }

  function step(by) {
    const place = zoom.place + by;
    if (place < 0 || place >= zoom.numbers.length) return;
    zoom.place = place;
    drawZoom();
  }

  /** Back to the card of the picture shown last, which may lie beyond the page that was drawn. */
  function returnFocus() {
    const number = zoom.numbers[zoom.place];
    const place = shown.indexOf(number);
    if (place >= state.limit) showMore(place + 1);
    (place < 0 ? byId("pictures") : cards.get(number).firstChild).focus();
  }

  // ---- tables ----

  function drawCounts() {
    const rows = countAll();
    for (const row of document.querySelectorAll("[data-row]")) {
      const counts = rows.get(row.dataset.row);
      for (const cell of row.querySelectorAll("[data-count]")) cell.textContent = counts[cell.dataset.count];
    }
    for (const table of document.querySelectorAll("table")) sortRows(table);
  }

  /** Sort by the column whose heading says so; rows without a value come last either way. */
  function sortRows(table) {
    const heading = table.querySelector("th[aria-sort]");
    if (!heading) return;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? 1 : -1;
    const value = (row) => row.cells[heading.cellIndex].dataset.value ?? row.cells[heading.cellIndex].textContent;
    const compare = (a, b) => {
      const [first, second] = [value(a), value(b)];
      if (heading.classList.contains("name")) return sign * first.localeCompare(second, "en", { numeric: true });
      if (first === "" || second === "") return (first === "") - (second === "");
      return sign * (Number(first) - Number(second));
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }

  function sortBy(heading) {
    const usual = heading.classList.contains("name") ? "ascending" : "descending";
    const other = usual === "ascending" ? "descending" : "ascending";
    const next = heading.getAttribute("aria-sort") === usual ? other : usual;
    const table = heading.closest("table");
    for (const one of table.querySelectorAll("th[aria-sort]")) one.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", next);
    sortRows(table);
  }

  // ---- what the reader does ----

  function drawAll() {
    judged = data.pictures.map(judge);
    version += 1;
    drawCounts();
    drawGallery();
    if (byId("zoom").open) drawZoom();
  }

  function setThreshold(value) {
    state.threshold = Number(value);
    for (const slider of document.querySelectorAll(".slider")) slider.value = value;
    for (const output of document.querySelectorAll(".score")) output.textContent = state.threshold.toFixed(2);
    drawAll();
  }

  function readFilters() {
    const filters = new FormData(byId("filters"));
    state.kinds = new Set(filters.getAll("kind"));
    state.label = filters.get("class") === "" ? null : Number(filters.get("class"));
    state.order = filters.get("order");
    state.limit = PAGE;
    version += 1;
    drawGallery();
  }

  /** Numbers cut off at the edge could be taken for others: the edge of a table that goes on fades. */
  function fadeTables() {
    for (const frame of document.querySelectorAll(".scroll")) {
      frame.classList.toggle("goes-on", frame.scrollLeft + frame.clientWidth < frame.scrollWidth - 1);
    }
  }

  function start() {
    data.pictures.forEach(unpack);
    const ratios = data.pictures.map(({ size }) => size[0] / size[1]).sort((a, b) => a - b);
    byId("gallery").style.setProperty("--frame", Math.max(0.75, Math.min(1.5, ratios[ratios.length >> 1])));
    for (const glyph of document.querySelectorAll(".glyph")) {
      const kind = glyph.parentElement.dataset.mark ?? glyph.parentElement.querySelector("input").value;
      glyph.textContent = GLYPHS[kind];
    }
    for (const slider of document.querySelectorAll(".slider")) {
      slider.addEventListener("input", () => setThreshold(slider.value));
    }
    for (const button of document.querySelectorAll("thead button")) {
      button.addEventListener("click", () => sortBy(button.closest("th")));
    }
    byId("filters").addEventListener("change", readFilters);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("filters").addEventListener("reset", () => setTimeout(readFilters)); // once the fields are reset
    byId("more").addEventListener("click", () => showMore());
    new IntersectionObserver(([entry]) => entry.isIntersecting && showMore(), { rootMargin: "600px" }).observe(byId("more"));

    const dialog = byId("zoom");
    byId("zoom-previous").addEventListener("click", () => step(-1));
    byId("zoom-next").addEventListener("click", () => step(1));
    byId("zoom-close").addEventListener("click", () => dialog.close());
    byId("zoom-labels").addEventListener("change", (event) => dialog.classList.toggle("bare", !event.target.checked));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", returnFocus);
    dialog.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || event.target.matches(".slider") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      step(by);
    });

    let waiting = 0;
    window.addEventListener("resize", () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => {
        placeTags([...document.querySelectorAll(".stage")]);
        fadeTables();
      });
    });
    for (const frame of document.querySelectorAll(".scroll")) frame.addEventListener("scroll", fadeTables);
    for (const choice of document.querySelectorAll("[name=metric]")) choice.addEventListener("change", fadeTables);
    drawAll();
    fadeTables();
  }

  start();
})();
