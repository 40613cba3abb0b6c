// Draws the figures of the page of runs; drawing.js stands before it.
(() => {
  const { data, byId, svg, number, show, hide, followWith, legend, options, path, dashed, lineChart, shade, shadeScale, keepDrawn } = drawing;

  // -- curves ----------------------------------------------------------------------------------------------------------
  const AXES = [{ key: 0, label: "steps" }, { key: 1, label: "tokens seen" }, { key: 2, label: "hours trained" }];
  const hidden = new Set(), redraws = [];
  const axis = () => +byId("runs-x").value;
  const chartPlace = (key) => byId("chart-" + key.replaceAll("/", "-"));
  const exact = (value) => String(+value.toPrecision(6));

  function drawChart({ key, label, roof }) {
    const place = chartPlace(key), x = axis();
    const shown = data.runs.filter((run) => !hidden.has(run.name) && run.curves[key].some((p) => p[3] !== null));
    if (!shown.length) { place.textContent = `${label}: nothing to draw.`; return; }
    const say = (run) => ([, mean, least, most, point]) => [
      ...(data.runs.length > 1 ? [run.name] : []), `${label}: ${exact(mean)}`,
      ...(least < most ? [`from ${exact(least)} to ${exact(most)}`] : []),
      `step ${point[0]}` + (point[1] ? `, ${number(point[1])} tokens` : ""),
    ];
    const labels = { label, xLabel: AXES[x].label, yLabel: label, roof, least: 220, xLog: false, marks: shown.flatMap((run) => run.marks.map((m) => m[x])) };
    lineChart(place, labels, shown.map((run) => ({
      name: run.name, colour: run.colour, dash: run.dash, band: true, say: say(run),
      points: run.curves[key].map((p) => [p[x], p[3], p[4], p[5], p]),
    })));
  }

  if (data.charts.length) {
    const redraw = () => redraws.forEach((draw) => draw());
    const known = AXES.filter(({ key }) => data.runs.some((run) => Object.values(run.curves).some((points) => points.some((p) => p[key]))));
    options(byId("runs-x"), known, redraw);
    if (data.runs.length > 1) {
      legend(byId("runs-legend"), data.runs.map((run) => ({
        key: run.name, label: run.name, colour: run.colour, icon: () => dashed(run.dash),
      })), hidden, redraw);
    }
    for (const chart of data.charts) {
      const draw = () => drawChart(chart);
      redraws.push(draw);
      keepDrawn(chartPlace(chart.key), draw);
    }
  }

  // -- load of the experts ---------------------------------------------------------------------------------------------
  // A grid of rows and columns. The cells of one shade are one path, so that thousands are drawn at once; the mouse and
  // the arrow keys read them.
  function grid(place, { label, rows, columns, percent, rowName, columnName, rowTitle, columnTitle, say }) {
    const width = Math.max(280, place.clientWidth), left = 62, top = 24;
    const cell = Math.min(56, (width - left - 8) / columns), high = Math.max(6, Math.min(30, Math.max(14, cell), 640 / rows));
    const bottom = top + high * rows, height = bottom + 62;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": label });
    place.replaceChildren(root);
    root.append(svg("text", { class: "tick", x: left, y: 14 }, columnTitle), svg("text", { class: "tick", x: left - 8, y: 14, "text-anchor": "end" }, rowTitle));
    const gap = Math.min(1, cell / 8, high / 8), shades = new Map();
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const colour = shade(2 ** (Math.round(8 * Math.log2(Math.max(percent(r, c), 1) / 100)) / 8));
        const box = `M${(left + cell * c + gap / 2).toFixed(2)} ${(top + high * r + gap / 2).toFixed(2)}h${(cell - gap).toFixed(2)}v${(high - gap).toFixed(2)}h${(gap - cell).toFixed(2)}z`;
        shades.set(colour, (shades.get(colour) || "") + box);
      }
    }
    for (const [colour, d] of shades) {
      const cells = svg("path", { class: "cells", d });
      cells.style.fill = colour;
      root.append(cells);
    }
    const everyRow = Math.ceil(13 / high), everyColumn = Math.ceil(34 / cell);
    for (let r = 0; r < rows; r += everyRow)
      root.append(svg("text", { class: "tick", x: left - 8, y: top + high * (r + 0.5) + 4, "text-anchor": "end" }, rowName(r)));
    for (let c = 0; c < columns; c += everyColumn)
      root.append(svg("text", { class: "tick", x: left + cell * (c + 0.5), y: bottom + 15, "text-anchor": "middle" }, columnName(c)));
    shadeScale(root, left, bottom + 28, width);
    const spot = svg("rect", { class: "spot", width: cell, height: high, visibility: "hidden" });
    const hit = svg("rect", { class: "hit", x: left, y: top, width: cell * columns, height: high * rows, tabindex: 0, role: "img", "aria-label": `${label}: arrow keys read the values` });
    root.append(spot, hit);
    hit.dataset.tip = "";
    let at = [0, 0];
    const read = (r, c) => {
      at = [r, c];
      const corner = root.getBoundingClientRect();
      spot.setAttribute("x", left + cell * c);
      spot.setAttribute("y", top + high * r);
      spot.setAttribute("visibility", "visible");
      show(corner.left + left + cell * (c + 0.5), corner.top + top + high * (r + 0.5), [...say(r, c), `${(percent(r, c) / 100).toFixed(2)} times the mean`]);
    };
    const look = (event) => {
      const corner = root.getBoundingClientRect();
      const within = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value)));
      read(within((event.clientY - corner.top - top) / high, rows), within((event.clientX - corner.left - left) / cell, columns));
    };
    const leave = () => { followWith(null); hide(); spot.setAttribute("visibility", "hidden"); };
    hit.addEventListener("pointermove", look);
    hit.addEventListener("click", look);
    hit.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
    hit.addEventListener("focus", () => {
      if (!hit.matches(":focus-visible")) return;
      followWith(() => read(...at));
      read(...at);
    });
    hit.addEventListener("blur", leave);
    hit.addEventListener("keydown", (event) => {
      const turn = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!turn) return;
      event.preventDefault();
      read(Math.max(0, Math.min(rows - 1, at[0] + turn[0])), Math.max(0, Math.min(columns - 1, at[1] + turn[1])));
    });
  }

  const routed = data.runs.filter((run) => run.routing);
  if (routed.length) {
    const chosen = () => routed[byId("routing-run") ? +byId("routing-run").value : 0].routing;
    const slider = byId("routing-step"), layer = byId("routing-layer");
    const drawLayers = () => {
      const { steps, layers } = chosen(), time = +slider.value;
      byId("routing-at").textContent = `up to step ${steps[time]}`;
      slider.setAttribute("aria-valuetext", `step ${steps[time]}`);
      grid(byId("routing-layers"), {
        label: "Load of experts by layer", rows: layers.length, columns: Math.max(...layers.map((l) => l.loads[time].length)),
        percent: (r, c) => layers[r].loads[time][c] ?? 100, rowName: (r) => String(layers[r].layer), columnName: String,
        rowTitle: "layer", columnTitle: "expert", say: (r, c) => [`layer ${layers[r].layer}, expert ${c}`, `up to step ${steps[time]}`],
      });
    };
    const drawTime = () => {
      const { steps, layers } = chosen(), one = layers[+layer.value];
      grid(byId("routing-time"), {
        label: `Load of the experts of layer ${one.layer} over time`, rows: one.loads[0].length, columns: steps.length,
        percent: (r, c) => one.loads[c][r], rowName: String, columnName: (c) => number(steps[c]),
        rowTitle: "expert", columnTitle: "up to step", say: (r, c) => [`layer ${one.layer}, expert ${r}`, `up to step ${steps[c]}`],
      });
    };
    const begin = () => {
      const { steps, layers } = chosen();
      slider.max = String(steps.length - 1);
      slider.value = slider.max;
      layer.replaceChildren(...layers.map((l, i) => new Option(String(l.layer), String(i))));
    };
    begin();
    if (byId("routing-run")) {
      options(byId("routing-run"), routed.map((run, i) => ({ key: i, label: run.name })), () => { begin(); drawLayers(); drawTime(); });
    }
    slider.addEventListener("input", () => { hide(); drawLayers(); });
    layer.addEventListener("change", () => { hide(); drawTime(); });
    keepDrawn(byId("routing-layers"), drawLayers);
    keepDrawn(byId("routing-time"), drawTime);
  }
})();
