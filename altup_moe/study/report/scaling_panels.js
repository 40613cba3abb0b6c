// Draws the small panels of a ladder: forest plots, tuning, coordinate check; drawing.js and scaling.js stand before it.
(() => {
  const { data, byId, svg, number, power, scale, explain, legend, frame, path, dashed, point, stretch, keepDrawn, DASHES } = drawing;
  const { look, familiesLegend, nothing, LOSS } = ladder;
  const all = data.scaling;

  // -- forest plots ----------------------------------------------------------------------------------------------------
  // A row has left (who), figures, verdict, colour, mark, at, low, high, lines, hollow, and off: [low, high], whether an
  // end lies farther out than the figure. `origin`: where the line stands that intervals are held against.
  function forest(place, { label, xLabel, log, origin }, rows) {
    const width = Math.max(280, place.clientWidth), letter = 6.4;
    const longest = (texts) => letter * Math.max(...texts.map((text) => text.length));
    const [left, right] = [longest(rows.map((r) => r.left)), longest(rows.map((r) => r.figures + "  " + r.verdict))];
    // Beside the intervals where that leaves them room, else above them.
    const beside = left + right < 0.62 * width, high = beside ? 30 : 62, top = 6;
    const bottom = top + high * rows.length, height = bottom + 46;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": label });
    place.replaceChildren(root);
    const [from, to] = beside ? [left + 20, width - right - 20] : [12, width - 12];
    const x = scale([origin, ...rows.flatMap((r) => [r.at, r.low, r.high])], from, to, log, (to - from) / 80);
    for (const tick of x.ticks) {
      root.append(svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: top, y2: bottom }));
      root.append(svg("text", { class: "tick", x: x.at(tick), y: bottom + 17, "text-anchor": "middle" }, number(tick)));
    }
    root.append(svg("line", { class: "event", x1: x.at(origin), x2: x.at(origin), y1: top, y2: bottom }));
    root.append(svg("text", { x: beside ? (from + to) / 2 : width - 12, y: height - 8, "text-anchor": beside ? "middle" : "end" }, xLabel));
    rows.forEach((row, i) => {
      const above = top + high * i, py = beside ? above + high / 2 : above + high - 14, centre = py + 4;
      const text = (content, px, ty, anchor = "start") => root.append(svg("text", { class: "name", x: px, y: ty, "text-anchor": anchor }, content));
      text(row.left, beside ? 4 : 12, beside ? centre : above + 14);
      if (beside) text(`${row.figures}  ${row.verdict}`, to + 16, centre);
      else { text(row.figures, width - 12, above + 14, "end"); text(row.verdict, 12, above + 30); }
      const [at, low, most] = [row.at, row.low, row.high].map(x.at);
      const group = point({ ...row, x: [at, low, most], y: [py, py, py] });
      if (row.off[0]) group.append(svg("path", { class: "cross", d: `M${low + 5} ${py - 4}l-5 4l5 4` }));
      if (row.off[1]) group.append(svg("path", { class: "cross", d: `M${most - 5} ${py - 4}l5 4l-5 4` }));
      root.append(group);
    });
  }

  const FARTHEST = 50;
  function drawMultipliers(place) {
    const held = (value) => Math.max(1 / FARTHEST, Math.min(FARTHEST, value === null ? FARTHEST : value));
    forest(place, { label: "Multipliers with their intervals", xLabel: "multiplier (times the cost), logarithmic", log: true, origin: 1 }, all.multipliers.map((m) => ({
      ...look(m.family), left: `${look(m.family).name}, equal ${m.axis}`, figures: m.text, verdict: m.verdict, hollow: m.ratio === null,
      at: held(m.ratio), low: held(m.low), high: held(m.high), off: [held(m.low) !== m.low, held(m.high) !== m.high],
      lines: [`${look(m.family).name}, equal ${m.axis}`, m.text, m.verdict],
    })));
  }
  if (byId("multipliers")) keepDrawn(byId("multipliers"), () => drawMultipliers(byId("multipliers")));

  function drawHeldOut(place) {
    const labels = { label: "Largest size: measured less predicted", xLabel: "measured less predicted (nats)", log: false, origin: 0 };
    forest(place, labels, all.cells.filter((cell) => cell.predicted).map((cell) => {
      const [predicted, low, high] = cell.predicted, left = `${look(cell.family).name}, ${number(cell.d)} tokens`;
      const figures = `${cell.loss.toFixed(4)} [${low.toFixed(4)}, ${high.toFixed(4)}]`, verdict = cell.inside ? "inside" : "outside";
      return {
        ...look(cell.family), left, figures, verdict, hollow: true, at: cell.loss - predicted, low: low - predicted, high: high - predicted,
        off: [false, false], lines: [left, `measured ${cell.loss.toFixed(4)}`, `predicted ${predicted.toFixed(4)} [${low.toFixed(4)}, ${high.toFixed(4)}]`, verdict],
      };
    }));
  }
  if (byId("held-out")) keepDrawn(byId("held-out"), () => drawHeldOut(byId("held-out")));

  // -- tuning ----------------------------------------------------------------------------------------------------------
  const tuningHidden = new Set();
  // Losses far above the best would press the others together: they stand at the top with those that failed.
  const roof = (losses) => Math.min(...losses) * 1.3;
  function drawTuning({ key, size, lines }, place) {
    const shown = lines.filter(({ family }) => !tuningHidden.has(family));
    const known = shown.flatMap((l) => l.tried.map((t) => t[1])).filter((loss) => loss !== null), top = roof(known);
    if (!shown.length) return nothing(place);
    const heights = known.filter((loss) => loss <= top);
    // Room for the strip at the bottom: a line for each family, with the value that was taken.
    const floor = Math.min(...heights, Infinity);
    if (heights.length) heights.push(Math.min(...heights) - (Math.max(...heights) - Math.min(...heights) || 0.01) * 0.1 * shown.length);
    const labels = { label: `Tuning at size ${size}`, xLabel: key, yLabel: LOSS, xLog: true, least: 260, xNumber: String, floor };
    const values = shown.flatMap((l) => [...l.tried.map((t) => t[0]), ...(l.taken ? [l.taken] : [])]);
    const { root, x, y, box } = frame(place, labels, values, heights.length ? heights : [0, 1]);
    const edge = box.bottom - 16 - 13 * (shown.length - 1);
    root.append(svg("rect", { class: "strip", x: box.left, y: edge, width: box.right - box.left, height: box.bottom - edge }));
    root.append(svg("text", { class: "tick", x: box.left - 7, y: (edge + box.bottom) / 2 + 4, "text-anchor": "end" }, "taken"));
    shown.forEach((line, order) => {
      const { name, colour, mark } = look(line.family), inside = (t) => t[1] !== null && t[1] <= top;
      const at = line.tried.filter(inside).map(([value, loss]) => [x.at(value), y.at(loss)]);
      if (at.length > 1) root.append(svg("path", { class: "series f" + colour, d: path(at), "data-name": name }));
      for (const tried of line.tried) {
        const px = x.at(tried[0]), said = [name, `${key} ${tried[0]}`, tried[1] === null ? "failed" : `loss ${tried[1].toFixed(4)}`];
        if (inside(tried)) {
          const py = y.at(tried[1]);
          root.append(point({ x: [px, px, px], y: [py, py, py], colour, mark, lines: said }));
        } else {
          const py = box.top + 8 + 12 * order;
          const cross = svg("path", { class: "cross f" + colour, d: `M${px - 4} ${py - 4}l8 8m0-8l-8 8` });
          const hit = svg("circle", { class: "hit", cx: px, cy: py, r: 8 });
          explain(hit, said);
          root.append(cross, hit);
        }
      }
      if (line.taken === null) return;
      const px = x.at(line.taken), py = box.bottom - 8 - 13 * (shown.length - 1 - order);
      root.append(svg("line", { class: "lead f" + colour, x1: px, x2: px, y1: box.top, y2: box.bottom }));
      const said = [name, `taken: ${key} ${line.taken}`, ...(line.edge ? ["edge: a better one may lie beyond"] : [])];
      const group = point({ x: [px, px, px], y: [py, py, py], colour, mark, lines: said, hollow: line.edge });
      group.classList.add("taken");
      root.append(group);
    });
  }
  if (all.tuning.length) {
    const redraws = all.tuning.map((one, i) => () => drawTuning(one, byId("tuning-" + i)));
    const tuned = new Set(all.tuning.flatMap((one) => one.lines.map((l) => l.family)));
    familiesLegend("tuning", all.shown.filter((i) => tuned.has(i)), tuningHidden, () => redraws.forEach((draw) => draw()));
    redraws.forEach((draw, i) => keepDrawn(byId("tuning-" + i), draw));
  }

  // -- coordinate check ------------------------------------------------------------------------------------------------
  const coordinatesHidden = new Set(), { names, panels } = all.coordinates;
  function drawCoordinates(panel, place) {
    const shown = panel.filter((line) => !coordinatesHidden.has(line.name));
    if (!shown.length) return nothing(place);
    const labels = { label: "Coordinate check", xLabel: "width", yLabel: "root mean square", xLog: true, yLog: true, least: 260, yNumber: (v) => (v < 1e-3 ? power(v) : number(v)) };
    const points = shown.flatMap((line) => line.points);
    const { root, x, y } = frame(place, labels, points.map((p) => p[0]), points.map((p) => p[1]));
    for (const line of shown) {
      const { name, colour, dash } = names[line.name], at = line.points.map(([w, rms]) => [x.at(w), y.at(rms)]);
      root.append(...stretch(at, { colour, dash: DASHES[dash], name }));
      const grows = line.exponent === null ? [] : [`grows as width^${line.exponent.toFixed(2)}`];
      line.points.forEach(([w, rms], i) => {
        const hit = svg("circle", { class: "hit", cx: at[i][0], cy: at[i][1], r: 9 });
        explain(hit, [name, `width ${w}: ${number(rms)}`, ...grows]);
        root.append(svg("circle", { class: "mark f" + colour, cx: at[i][0], cy: at[i][1], r: 4 }), hit);
      });
    }
  }
  if (panels.length) {
    const redraws = panels.map((panel, i) => () => drawCoordinates(panel, byId("coordinates-" + i)));
    legend(byId("coordinates-legend"), names.map(({ name, colour, dash }, i) => ({
      key: i, label: name, colour, icon: () => dashed(dash),
    })), coordinatesHidden, () => redraws.forEach((draw) => draw()));
    redraws.forEach((draw, i) => keepDrawn(byId("coordinates-" + i), draw));
  }
})();
