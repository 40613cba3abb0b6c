// Draws figures from the JSON in #data. Text only ever enters through textContent. The page's own script follows.
"use strict";
const drawing = (() => {
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

  // As 3×10¹⁵.
  function power(value, digits = 2) {
    const [factor, exponent] = (+value.toPrecision(digits)).toExponential().split("e");
    const raised = String(+exponent).replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).replace("-", "⁻");
    return (factor === "1" ? "" : factor + "×") + "10" + raised;
  }

  function steps(low, high, wanted) {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12); i++) found.push(+(i * step).toPrecision(12));
    return found;
  }

  // A scale over pixels. log: true, false, or "wide": where values differ by more than three times.
  function scale(values, from, to, wished, wanted) {
    let low = Math.min(...values), high = Math.max(...values);
    const log = low > 0 && (wished === "wide" ? high / low > 3 : wished);
    const forward = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v;
    const room = (forward(high) - forward(low)) * 0.07 || Math.abs(forward(high)) * 0.1 || 1;
    [low, high] = [forward(low) - room, forward(high) + room];
    let ticks = steps(back(low), back(high), wanted);
    if (log && high - low > Math.log(3)) {
      const powers = [], most = Math.max(3, wanted);
      for (let p = Math.floor(low / Math.LN10); p <= high / Math.LN10; p++) powers.push(10 ** p);
      const every = Math.ceil(powers.length / most);
      for (const factors of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
        const found = powers.filter((_, i) => factors.length > 1 || i % every === 0)
          .flatMap((p) => factors.map((f) => f * p)).filter((v) => Math.log(v) >= low && Math.log(v) <= high);
        if (found.length <= most && (factors.length === 1 || found.length > 1)) ticks = found;
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
  const followWith = (f) => { follow = f; };
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

  const dashed = (dash) => svg("path", { class: "series", d: "M-13 0H13", "stroke-dasharray": DASHES[dash] });

  // Axes and grid; the margins leave room for the labels. xNumber, yNumber: how ticks are written;
  // floor: none of y stand below it.
  function frame(place, { label, xLabel, yLabel, least = 320, xLog = "wide", yLog = false, xNumber = number, yNumber = number, floor = -Infinity }, xs, ys) {
    const width = Math.max(280, place.clientWidth), height = Math.round(Math.min(480, Math.max(least, width * 0.56)));
    const box = { left: 52, right: width - 12, top: 28, bottom: height - 46 };
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": label });
    place.replaceChildren(root);
    const x = scale(xs, box.left, box.right, xLog, width / 90), y = scale(ys, box.bottom, box.top, yLog, height / 60);
    for (const tick of y.ticks.filter((t) => t >= floor)) {
      root.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick) }));
      root.append(svg("text", { class: "tick", x: box.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, yNumber(tick)));
    }
    for (const tick of x.ticks) {
      root.append(svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: box.top, y2: box.bottom }));
      root.append(svg("text", { class: "tick", x: x.at(tick), y: box.bottom + 18, "text-anchor": "middle" }, xNumber(tick)));
    }
    root.append(svg("text", { x: box.right, y: height - 8, "text-anchor": "end" }, xLabel + (x.log ? ", logarithmic" : "")));
    root.append(svg("text", { x: 4, y: 15 }, yLabel + (y.log ? ", logarithmic" : "")));
    return { root, x, y, box };
  }

  const path = (points) => "M" + points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L");

  // A mark with whiskers, in pixels: x and y are [mean, least, most]. Mouse, finger and keyboard read its lines.
  function point({ x: [mx, lx, hx], y: [my, ly, hy], colour, mark, lines, hollow = false, ring = false }) {
    const group = svg("g", { class: "point f" + colour, tabindex: 0, role: "img", "aria-label": lines.join("; ") });
    if (lx !== hx) group.append(svg("line", { class: "whisker", x1: lx, x2: hx, y1: my, y2: my }));
    if (ly !== hy) group.append(svg("line", { class: "whisker", x1: mx, x2: mx, y1: ly, y2: hy }));
    group.append(svg("path", { class: "mark" + (hollow ? " hollow" : ""), d: MARKS[mark], transform: `translate(${mx} ${my})` }));
    if (ring) group.append(svg("circle", { class: "ring", cx: mx, cy: my, r: 10.5 }));
    const hit = svg("circle", { class: "hit", cx: mx, cy: my, r: 14 });
    group.append(hit);
    explain(group, lines);
    group.addEventListener("focus", () => {
      if (!group.matches(":focus-visible")) return;
      const say = () => {
        const at = hit.getBoundingClientRect();
        show(at.left + at.width / 2, at.top + at.height / 2, lines);
      };
      followWith(say);
      say();
    });
    group.addEventListener("blur", () => { followWith(null); hide(); });
    return group;
  }

  // A line and its band, in pixels: points [x, y, least, most].
  function stretch(points, { colour, band, dash = "", name = "" }) {
    const parts = [], at = points.map((p) => [p[0], p[1]]);
    const least = points.map((p) => [p[0], p[2]]), most = points.map((p) => [p[0], p[3]]);
    if (band) parts.push(svg("path", { class: "band f" + colour, d: path([...least, ...most.reverse()]) + "Z" }));
    return [...parts, svg("path", { class: "series f" + colour, d: path(at), "stroke-dasharray": dash, "data-name": name })];
  }

  // Curves. A series has name, colour, dash, band, points [x, mean, least, most] (mean null: a gap) and say(point): lines
  // of its tooltip. roof: share of the points that must fit; a few larger ones would press everything else together.
  // Marks are vertical lines at x. The mouse finds the nearest point; with the keyboard, arrows walk along and between.
  function lineChart(place, { roof = 1, marks = [], ...labels }, series) {
    const points = series.flatMap((s) => s.points.filter((p) => p[1] !== null));
    const sorted = points.map((p) => p[3]).sort((a, b) => a - b), top = sorted[Math.ceil(roof * (sorted.length - 1))];
    const { root, x, y, box } = frame(
      place, labels, [0, ...points.map((p) => p[0])], [...points.map((p) => Math.min(top, p[2])), top]);
    const area = { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top };
    const clip = "clip-" + place.id;
    root.append(svg("clipPath", { id: clip }, svg("rect", area)));
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    for (const at of marks) inside.append(svg("line", { class: "event", x1: x.at(at), x2: x.at(at), y1: box.top, y2: box.bottom }));
    const places = [];
    series.forEach((one, s) => {
      const runs = [[]];
      for (const point of one.points) {
        if (point[1] === null) { runs.push([]); continue; }
        runs[runs.length - 1].push(point);
      }
      for (const run of runs.filter((r) => r.length)) {
        const at = run.map((p) => [x.at(p[0]), ...p.slice(1, 4).map(y.at)]);
        inside.append(...stretch(at, { colour: one.colour, band: one.band, dash: DASHES[one.dash], name: one.name }));
        if (run.length === 1) inside.append(svg("circle", { class: "mark f" + one.colour, cx: at[0][0], cy: at[0][1], r: 3.5 }));
        at.forEach((p, i) => { if (p[1] >= box.top) places.push({ series: s, at: p, point: run[i] }); });
      }
    });
    const spot = svg("circle", { class: "mark", r: 5, visibility: "hidden" });
    const hit = svg("rect", { class: "hit", ...area, tabindex: 0, role: "img", "aria-label": `${labels.label}: arrow keys read the values` });
    root.append(inside, spot, hit);
    hit.dataset.tip = "";
    let chosen = null;
    const read = (one) => {
      chosen = one;
      const corner = root.getBoundingClientRect();
      spot.setAttribute("class", "mark f" + series[one.series].colour);
      spot.setAttribute("cx", one.at[0]);
      spot.setAttribute("cy", one.at[1]);
      spot.setAttribute("visibility", "visible");
      show(corner.left + one.at[0], corner.top + one.at[1], series[one.series].say(one.point));
    };
    const nearest = (px, py, among) => {
      let best = null, distance = Infinity;
      for (const one of among) {
        const d = Math.hypot(one.at[0] - px, one.at[1] - py);
        if (d < distance) [best, distance] = [one, d];
      }
      return best;
    };
    const look = (event) => {
      const corner = root.getBoundingClientRect();
      const best = nearest(event.clientX - corner.left, event.clientY - corner.top, places);
      if (best) read(best);
    };
    const leave = () => { follow = null; hide(); spot.setAttribute("visibility", "hidden"); };
    hit.addEventListener("pointermove", look);
    hit.addEventListener("click", look);
    hit.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
    const begin = () => read(chosen || places.filter((one) => one.series === places[0].series).pop());
    hit.addEventListener("focus", () => {
      if (!hit.matches(":focus-visible") || !places.length) return;
      follow = begin;
      begin();
    });
    hit.addEventListener("blur", leave);
    hit.addEventListener("keydown", (event) => {
      const turn = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!turn || !places.length) return;
      event.preventDefault();
      if (!chosen) begin();
      const line = places.filter((one) => one.series === chosen.series), others = [...new Set(places.map((one) => one.series))];
      const next = others[(others.indexOf(chosen.series) + turn[1] + others.length) % others.length];
      const at = Math.max(0, Math.min(line.length - 1, line.indexOf(chosen) + turn[0]));
      read(turn[0] ? line[at] : nearest(chosen.at[0], chosen.at[1], places.filter((one) => one.series === next)));
    });
  }

  // -- load of experts: a colour for a ratio to the mean -----------------------------------------------------------------
  function shade(ratio) {
    const t = Math.max(-1, Math.min(1, Math.log2(Math.max(ratio, 1e-9)) / 2));
    return `color-mix(in oklab, var(${t < 0 ? "--under" : "--over"}) ${Math.round(100 * Math.abs(t))}%, var(--even))`;
  }

  function shadeScale(root, left, top, width) {
    const scales = [0.25, 0.5, 1, 2, 4], room = Math.min(64, (width - left - 70) / 5);
    scales.forEach((ratio, i) => {
      const rect = svg("rect", { x: left + room * i, y: top, width: room, height: 12 });
      rect.style.fill = shade(ratio);
      root.append(rect, svg("text", { class: "tick", x: left + room * (i + 0.5), y: top + 26, "text-anchor": "middle" },
        (i === 0 ? "≤ ¼" : i === 1 ? "½" : i === 4 ? "≥ 4" : String(ratio))));
    });
    root.append(svg("text", { class: "tick", x: left + room * 5 + 8, y: top + 10 }, "× mean"));
  }

  // Draw a figure now, and again when the width of its place changes.
  function keepDrawn(place, draw) {
    let width = 0;
    new ResizeObserver(() => {
      if (place.clientWidth === width) return;
      width = place.clientWidth;
      draw();
    }).observe(place);
  }

  return {
    data, byId, svg, number, power, scale, show, hide, explain, followWith, legend, options, frame, path, dashed,
    point, stretch, lineChart, shade, shadeScale, keepDrawn, MARKS, DASHES,
  };
})();
