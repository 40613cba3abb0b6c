// Draws the figures of a study's page from the JSON in #data. Text only ever enters through textContent.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const tip = byId("tip");
  const MARKS = [
    "M6 0A6 6 0 1 1-6 0A6 6 0 1 1 6 0Z", "M-5.3-5.3H5.3V5.3H-5.3Z", "M0-6.8L6.4 4.6H-6.4Z", "M0-7.4L6.2 0L0 7.4L-6.2 0Z",
    "M0 6.8L6.4-4.6H-6.4Z", "M-2.2-6.4H2.2V-2.2H6.4V2.2H2.2V6.4H-2.2V2.2H-6.4V-2.2H-2.2Z",
  ];
  const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 3", "4 2 1 2"];

  function svg(tag, attributes = {}, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // -- numbers -------------------------------------------------------------------------------------------------------
  function number(value) {
    for (const [unit, size] of [["B", 1e9], ["M", 1e6], ["k", 1e4]])
      if (Math.abs(value) >= size) return +(value / (unit === "k" ? 1e3 : size)).toPrecision(3) + unit;
    return String(+value.toPrecision(3));
  }

  function steps(low, high, wanted) {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12); i++) found.push(+(i * step).toPrecision(12));
    return found;
  }

  // A scale over pixels. Costs of a family grow by factors, so a wide range is logarithmic.
  function scale(values, from, to, mayBeLog, wanted) {
    let low = Math.min(...values), high = Math.max(...values);
    const log = mayBeLog && low > 0 && high / low > 3;
    const forward = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
    const room = (forward(high) - forward(low)) * 0.07 || Math.abs(forward(high)) * 0.1 || 1;
    [low, high] = [forward(low) - room, forward(high) + room];
    let ticks = steps(back(low), back(high), wanted);
    if (log) {
      const powers = [];
      for (let p = Math.floor(low / Math.LN10); p <= high / Math.LN10; p++) powers.push(10 ** p);
      for (const factors of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
        const found = powers.flatMap((p) => factors.map((f) => f * p)).filter((v) => Math.log(v) >= low && Math.log(v) <= high);
        if (found.length <= Math.max(3, wanted)) ticks = found;
      }
    }
    const at = (value) => from + ((forward(value) - low) / (high - low)) * (to - from);
    return { at, ticks, log };
  }

  // -- tooltips: mouse, finger and keyboard ----------------------------------------------------------------------------
  function show(x, y, lines) {
    tip.replaceChildren();
    lines.forEach((line, i) => {
      const element = document.createElement(i ? "div" : "b");
      element.textContent = line;
      tip.append(element);
    });
    tip.hidden = false;
    shownAt = window.scrollY;
    const { width, height } = tip.getBoundingClientRect(), page = document.documentElement.clientWidth;
    tip.style.left = Math.max(8, Math.min(x + 14, page - width - 8)) + "px";
    tip.style.top = (y - height - 14 > 4 ? y - height - 14 : y + 18) + "px";
  }
  const hide = () => { tip.hidden = true; };
  // The Tab key scrolls to what it reaches, and what that says moves with it. The event may come late: whether the page
  // has moved since the tooltip was shown decides.
  let follow = null, shownAt = 0;
  document.addEventListener("scroll", () => {
    if (follow) follow();
    else if (window.scrollY !== shownAt) hide();
  }, { passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest("[data-tip]")) hide(); });

  function explain(element, lines) {
    element.dataset.tip = "";
    element.addEventListener("pointerenter", (event) => show(event.clientX, event.clientY, lines));
    // A finger that is lifted leaves too, and what it asked for shall stay.
    element.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    element.addEventListener("click", (event) => show(event.clientX, event.clientY, lines));
  }

  // -- parts of a figure -----------------------------------------------------------------------------------------------
  function legend(place, entries, hidden, redraw) {
    for (const { key, label, colour, icon } of entries) {
      const button = document.createElement("button");
      const image = svg("svg", { width: 26, height: 16, viewBox: "-13 -8 26 16", "aria-hidden": "true", class: "f" + colour });
      image.append(icon());
      button.type = "button";
      button.append(image, label);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!hidden.delete(key)) hidden.add(key);
        button.setAttribute("aria-pressed", String(!hidden.has(key)));
        hide();
        redraw();
      });
      place.append(button);
    }
  }

  function options(select, entries, redraw) {
    for (const { key, label } of entries) select.append(new Option(label, key));
    select.addEventListener("change", () => { hide(); redraw(); });
  }

  // Axes and grid; the margins leave room for the labels.
  function frame(place, label, xs, ys, xLabel, yLabel) {
    const width = Math.max(280, place.clientWidth), height = Math.round(Math.min(480, Math.max(320, width * 0.56)));
    const box = { left: 52, right: width - 12, top: 28, bottom: height - 46 };
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": label });
    place.replaceChildren(root);
    const x = scale(xs, box.left, box.right, true, width / 90), y = scale(ys, box.bottom, box.top, false, height / 60);
    for (const tick of y.ticks) {
      root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick) }));
      root.append(svg("text", { class: "tick", x: box.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, number(tick)));
    }
    for (const tick of x.ticks) {
      root.append(svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: box.top, y2: box.bottom }));
      root.append(svg("text", { class: "tick", x: x.at(tick), y: box.bottom + 18, "text-anchor": "middle" }, number(tick)));
    }
    root.append(svg("text", { x: box.right, y: height - 8, "text-anchor": "end" }, xLabel + (x.log ? ", logarithmic" : "")));
    root.append(svg("text", { x: 4, y: 15 }, yLabel));
    return { root, x, y, box };
  }

  const path = (points) => "M" + points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L");
  const clash = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

  // -- quality against cost --------------------------------------------------------------------------------------------
  const frontHidden = new Set();
  function drawFront() {
    const place = byId("front"), axis = byId("front-x").value, measure = byId("front-y").value;
    const label = (list, key) => list.find((entry) => entry.key === key).label;
    const shown = data.models.filter((m) => m.x[axis] && !frontHidden.has("family " + m.family));
    if (!shown.length) { place.textContent = "Nothing to draw: no family is chosen, or none has this figure."; return; }
    const { root, x, y, box } = frame(
      place, "Quality against cost", shown.flatMap((m) => m.x[axis]), shown.flatMap((m) => m.y[measure]),
      label(data.axes, axis), label(data.measures, measure));
    const on = new Set(data.fronts[measure][axis]);
    if (!frontHidden.has("front")) {
      const steps = [];
      for (const i of data.fronts[measure][axis].filter((i) => shown.includes(data.models[i]))) {
        const [px, py] = [x.at(data.models[i].x[axis][0]), y.at(data.models[i].y[measure][0])];
        if (steps.length) steps.push([px, steps[steps.length - 1][1]]);
        steps.push([px, py]);
      }
      if (steps.length > 1) root.append(svg("path", { class: "front", d: path(steps) }));
    }
    data.families.forEach((family, f) => {
      const line = shown.filter((m) => m.family === f).sort((a, b) => a.x[axis][0] - b.x[axis][0])
        .map((m) => [x.at(m.x[axis][0]), y.at(m.y[measure][0])]);
      if (line.length > 1) root.append(svg("path", { class: "series f" + family.colour, d: path(line) }));
    });
    const taken = [];
    for (const m of shown) {
      const [mx, lx, hx] = m.x[axis].map(x.at), [my, ly, hy] = m.y[measure].map(y.at);
      taken.push([Math.min(mx - 8, lx), Math.min(my - 8, hy), Math.max(mx + 8, hx), Math.max(my + 8, ly)]);
    }
    for (const m of shown) {
      const family = data.families[m.family], [mx, lx, hx] = m.x[axis].map(x.at), [my, ly, hy] = m.y[measure].map(y.at);
      const lines = [
        m.name, family.name, `${label(data.measures, measure)}: ${m.shown[measure]}`, `${label(data.axes, axis)}: ${m.shown[axis]}`,
        m.seeds === 1 ? "one seed" : `${m.seeds} seeds, lines from least to most`,
        ...(m.speed ? ["speed at equal quality (train step): " + m.speed] : []),
      ];
      const point = svg("g", { class: "point f" + family.colour, tabindex: 0, role: "img", "aria-label": lines.join("; ") });
      point.append(svg("line", { class: "whisker", x1: lx, x2: hx, y1: my, y2: my }));
      point.append(svg("line", { class: "whisker", x1: mx, x2: mx, y1: ly, y2: hy }));
      point.append(svg("path", { class: "mark", d: MARKS[family.mark], transform: `translate(${mx} ${my})` }));
      if (!frontHidden.has("front") && on.has(data.models.indexOf(m))) point.append(svg("circle", { class: "ring", cx: mx, cy: my, r: 10.5 }));
      point.append(svg("circle", { class: "hit", cx: mx, cy: my, r: 14 }));
      explain(point, lines);
      point.addEventListener("focus", () => {
        if (!point.matches(":focus-visible")) return;
        follow = () => {
          const at = point.querySelector(".hit").getBoundingClientRect();
          show(at.left + at.width / 2, at.top + at.height / 2, lines);
        };
        follow();
      });
      point.addEventListener("blur", () => { follow = null; hide(); });
      root.append(point);
      // A name stands where it covers nothing; where there is no such place, the tooltip has it.
      const wide = 6.3 * m.name.length;
      for (const [dx, dy] of [[13, 4], [-13 - wide, 4], [-wide / 2, -15], [-wide / 2, 23], [8, -12], [-8 - wide, 20]]) {
        const area = [mx + dx - 1, my + dy - 10, mx + dx + wide + 1, my + dy + 3];
        if (area[0] < box.left || area[2] > box.right + 8 || area[1] < box.top - 8 || area[3] > box.bottom) continue;
        if (taken.some((other) => clash(area, other))) continue;
        taken.push(area);
        root.append(svg("text", { class: "name", x: mx + dx, y: my + dy, "aria-hidden": "true" }, m.name));
        break;
      }
    }
  }

  // -- loss curves -----------------------------------------------------------------------------------------------------
  const curvesHidden = new Set();
  function drawCurves() {
    const place = byId("curves"), which = byId("curves-y").value;
    const shown = data.curves.filter((c) => c[which].length && !curvesHidden.has(c.name));
    if (!shown.length) { place.textContent = "Nothing to draw: no model is chosen, or none has this loss."; return; }
    const points = shown.flatMap((c) => c[which]);
    // The first steps would press everything else together.
    const sorted = points.map((p) => p[3]).sort((a, b) => a - b), roof = sorted[Math.floor(0.93 * (sorted.length - 1))];
    const { root, x, y, box } = frame(
      place, "Loss curves", [0, ...points.map((p) => p[0])],
      [...points.map((p) => Math.min(roof, p[2])), roof], "tokens seen", "loss (nats a token)");
    const clip = "clip-curves";
    root.append(svg("clipPath", { id: clip }, svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top })));
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    const places = [];
    for (const curve of shown) {
      const at = curve[which].map((p) => [x.at(p[0]), y.at(p[1])]);
      const colour = " f" + data.families[curve.family].colour;
      const least = curve[which].map((p) => [x.at(p[0]), y.at(p[2])]), most = curve[which].map((p) => [x.at(p[0]), y.at(p[3])]);
      if (curve.seeds > 1) inside.append(svg("path", { class: "band" + colour, d: path([...least, ...most.reverse()]) + "Z" }));
      inside.append(svg("path", { class: "series" + colour, d: path(at), "stroke-dasharray": DASHES[curve.dash], "data-name": curve.name }));
      at.forEach((p, i) => { if (p[1] >= box.top) places.push({ curve, at: p, point: curve[which][i] }); });
    }
    const spot = svg("circle", { class: "mark", r: 5, visibility: "hidden" });
    const hit = svg("rect", { class: "hit", x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top });
    root.append(inside, spot, hit);
    hit.dataset.tip = "";
    const look = (event) => {
      const corner = root.getBoundingClientRect(), px = event.clientX - corner.left, py = event.clientY - corner.top;
      let best = null, distance = Infinity;
      for (const one of places) {
        const d = Math.hypot(one.at[0] - px, one.at[1] - py);
        if (d < distance) [best, distance] = [one, d];
      }
      if (!best) return;
      const [tokens, mean, least, most] = best.point;
      spot.setAttribute("class", "mark f" + data.families[best.curve.family].colour);
      spot.setAttribute("cx", best.at[0]);
      spot.setAttribute("cy", best.at[1]);
      spot.setAttribute("visibility", "visible");
      const range = best.curve.seeds > 1 ? ` (${least.toFixed(4)} to ${most.toFixed(4)}, ${best.curve.seeds} seeds)` : "";
      show(corner.left + best.at[0], corner.top + best.at[1], [best.curve.name, `${number(tokens)} tokens`, `loss ${mean.toFixed(4)}${range}`]);
    };
    hit.addEventListener("pointermove", look);
    hit.addEventListener("click", look);
    hit.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") { hide(); spot.setAttribute("visibility", "hidden"); }
    });
  }

  // -- experts' load ---------------------------------------------------------------------------------------------------
  function shade(ratio) {
    const t = Math.max(-1, Math.min(1, Math.log2(Math.max(ratio, 1e-9)) / 2));
    return `color-mix(in oklab, var(${t < 0 ? "--under" : "--over"}) ${Math.round(100 * Math.abs(t))}%, var(--even))`;
  }

  function drawLoad() {
    const place = byId("load"), row = data.loads[+byId("load-row").value];
    const width = Math.max(280, place.clientWidth), left = 62, top = 24;
    const most = Math.max(...row.layers.map((l) => l.load.length));
    const cell = Math.min(56, (width - left - 8) / most), high = Math.max(16, Math.min(30, cell));
    const height = top + high * row.layers.length + 62;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": "Load of experts by layer" });
    place.replaceChildren(root);
    root.append(svg("text", { class: "tick", x: left, y: 14 }, "expert"), svg("text", { class: "tick", x: left - 8, y: 14, "text-anchor": "end" }, "layer"));
    row.layers.forEach(({ layer, load }, i) => {
      root.append(svg("text", { class: "tick", x: left - 8, y: top + high * i + high / 2 + 4, "text-anchor": "end" }, String(layer)));
      load.forEach((share, expert) => {
        const ratio = share * load.length;
        const rect = svg("rect", { class: "cell", x: left + cell * expert + 0.5, y: top + high * i + 0.5, width: Math.max(0.5, cell - 1), height: high - 1, rx: 2 });
        rect.style.fill = shade(ratio);
        explain(rect, [`layer ${layer}, expert ${expert}`, `${(100 * share).toPrecision(3)} % of the layer's routes`, `${ratio.toPrecision(3)} times the mean`]);
        root.append(rect);
      });
    });
    const bottom = top + high * row.layers.length;
    const every = Math.ceil(26 / cell);
    for (let e = 0; e < most; e += every)
      root.append(svg("text", { class: "tick", x: left + cell * (e + 0.5), y: bottom + 15, "text-anchor": "middle" }, String(e)));
    const scales = [0.25, 0.5, 1, 2, 4], room = Math.min(64, (width - left - 70) / 5);
    scales.forEach((ratio, i) => {
      const rect = svg("rect", { x: left + room * i, y: bottom + 28, width: room, height: 12 });
      rect.style.fill = shade(ratio);
      root.append(rect, svg("text", { class: "tick", x: left + room * (i + 0.5), y: bottom + 54, "text-anchor": "middle" },
        (i === 0 ? "≤ ¼" : i === 1 ? "½" : i === 4 ? "≥ 4" : String(ratio))));
    });
    root.append(svg("text", { class: "tick", x: left + room * 5 + 8, y: bottom + 38 }, "× mean"));
  }

  // -- the page --------------------------------------------------------------------------------------------------------
  const drawn = [];
  const mark = (family) => svg("path", { class: "mark", d: MARKS[family.mark] });
  if (byId("front")) {
    options(byId("front-x"), data.axes, drawFront);
    options(byId("front-y"), data.measures, drawFront);
    legend(byId("front-legend"), [
      ...data.families.map((family, f) => ({ key: "family " + f, label: family.name, colour: family.colour, icon: () => mark(family) })),
      { key: "front", label: "Pareto front", colour: 0, icon: () => svg("path", { class: "front", d: "M-13 -5H0V5H13" }) },
    ], frontHidden, drawFront);
    drawn.push([byId("front"), drawFront]);
  }
  if (byId("curves")) {
    options(byId("curves-y"), [["valid", "held out"], ["train", "training"]]
      .filter(([key]) => data.curves.some((c) => c[key].length)).map(([key, label]) => ({ key, label })), drawCurves);
    legend(byId("curves-legend"), data.curves.map((curve) => ({
      key: curve.name, label: curve.name, colour: data.families[curve.family].colour,
      icon: () => svg("path", { class: "series", d: "M-13 0H13", "stroke-dasharray": DASHES[curve.dash] }),
    })), curvesHidden, drawCurves);
    drawn.push([byId("curves"), drawCurves]);
  }
  if (byId("load")) {
    options(byId("load-row"), data.loads.map((row, i) => ({ key: i, label: row.label })), drawLoad);
    drawn.push([byId("load"), drawLoad]);
  }
  for (const [place, draw] of drawn) {
    let width = 0;
    new ResizeObserver(() => {
      if (place.clientWidth === width) return;
      width = place.clientWidth;
      draw();
    }).observe(place);
  }
})();
