// Draws the figures of a study's page; drawing.js stands before it.
(() => {
  const {
    data, byId, svg, number, explain, legend, options, frame, path, dashed, point, lineChart, shade, shadeScale, keepDrawn,
    MARKS,
  } = drawing;

  // -- quality against cost --------------------------------------------------------------------------------------------
  const clash = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const frontHidden = new Set();
  function drawFront() {
    const place = byId("front"), axis = byId("front-x").value, measure = byId("front-y").value;
    const label = (list, key) => list.find((entry) => entry.key === key).label;
    const shown = data.models.filter((m) => m.x[axis] && !frontHidden.has("family " + m.family));
    if (!shown.length) { place.textContent = "Nothing to draw: no family is chosen, or none has this figure."; return; }
    const labels = { label: "Quality against cost", xLabel: label(data.axes, axis), yLabel: label(data.measures, measure) };
    const { root, x, y, box } = frame(place, labels, shown.flatMap((m) => m.x[axis]), shown.flatMap((m) => m.y[measure]));
    const rings = new Set(data.rings[measure][axis]);
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
      const ring = !frontHidden.has("front") && rings.has(data.models.indexOf(m));
      root.append(point({ x: [mx, lx, hx], y: [my, ly, hy], colour: family.colour, mark: family.mark, ring, lines }));
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
    const say = (curve) => ([tokens, mean, least, most]) => {
      const range = curve.seeds > 1 ? ` (${least.toFixed(4)} to ${most.toFixed(4)}, ${curve.seeds} seeds)` : "";
      return [curve.name, `${number(tokens)} tokens`, `loss ${mean.toFixed(4)}${range}`];
    };
    // The first steps would press everything else together.
    const labels = { label: "Loss curves", xLabel: "tokens seen", yLabel: "loss (nats a token)", roof: 0.93 };
    lineChart(place, labels, shown.map((curve) => ({
      name: curve.name, colour: data.families[curve.family].colour, dash: curve.dash, band: curve.seeds > 1,
      points: curve[which], say: say(curve),
    })));
  }

  // -- experts' load ---------------------------------------------------------------------------------------------------
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
    shadeScale(root, left, bottom + 28, width);
  }

  // -- the page --------------------------------------------------------------------------------------------------------
  const mark = (family) => svg("path", { class: "mark", d: MARKS[family.mark] });
  if (byId("front")) {
    options(byId("front-x"), data.axes, drawFront);
    options(byId("front-y"), data.measures, drawFront);
    legend(byId("front-legend"), [
      ...data.families.map((family, f) => ({ key: "family " + f, label: family.name, colour: family.colour, icon: () => mark(family) })),
      { key: "front", label: "Pareto front", colour: 0, icon: () => svg("path", { class: "front", d: "M-13 -5H0V5H13" }) },
    ], frontHidden, drawFront);
    keepDrawn(byId("front"), drawFront);
  }
  if (byId("curves")) {
    options(byId("curves-y"), [["valid", "held out"], ["train", "training"]]
      .filter(([key]) => data.curves.some((c) => c[key].length)).map(([key, label]) => ({ key, label })), drawCurves);
    legend(byId("curves-legend"), data.curves.map((curve) => ({
      key: curve.name, label: curve.name, colour: data.families[curve.family].colour,
      icon: () => dashed(curve.dash),
    })), curvesHidden, drawCurves);
    keepDrawn(byId("curves"), drawCurves);
  }
  if (byId("load")) {
    options(byId("load-row"), data.loads.map((row, i) => ({ key: i, label: row.label })), drawLoad);
    keepDrawn(byId("load"), drawLoad);
  }
})();
