// Draws the figures of a ladder; drawing.js stands before it.
(() => {
  const { data, byId, svg, number, power, scale, show, hide, explain, legend, frame, path, dashed, point, stretch, keepDrawn, MARKS, DASHES } = drawing;
  const all = data.scaling, BEYOND = "5 4";
  const LOSS = "held-out loss (nats a token)", SIZE = "active parameters without tables";
  const COSTS = { flops: "training FLOPs", seconds: "training seconds" };
  const writes = { flops: power, seconds: number };
  const look = (i) => all.families[i];

  // -- parts -----------------------------------------------------------------------------------------------------------
  // A line with its band; where `inside` ends it is dashed. points: [x, y, least, most], as values; say(i): a tooltip.
  function law({ root, x, y }, points, inside, colour, name, say) {
    const at = points.map(([px, ...losses]) => [x.at(px), ...losses.map(y.at)]);
    for (let from = 0; from < at.length - 1;) {
      let to = from + 1;
      while (to < at.length - 1 && inside[to] === inside[from]) to++;
      root.append(...stretch(at.slice(from, to + 1), { colour, band: true, dash: inside[from] ? "" : BEYOND, name }));
      from = to;
    }
    const reach = svg("path", { class: "reach", d: path(at.map((p) => [p[0], p[1]])), "data-tip": "" });
    const read = (event) => {
      const px = event.clientX - root.getBoundingClientRect().left;
      const nearest = at.reduce((best, p, i) => (Math.abs(p[0] - px) < Math.abs(at[best][0] - px) ? i : best), 0);
      show(event.clientX, event.clientY, say(nearest));
    };
    reach.addEventListener("pointermove", read);
    reach.addEventListener("click", read);
    reach.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    root.append(reach);
  }

  // Says the same of a family's curve wherever one is drawn.
  const saysOf = (family, { stops, inside }, kind) => (i) => {
    const [cost, n, d, loss, low, high] = stops[i];
    return [
      look(family).name + ": the law", `loss ${loss.toFixed(4)} [${low.toFixed(4)}, ${high.toFixed(4)}]`,
      `${COSTS[kind]}: ${writes[kind](cost, 3)}`, `${number(n)} parameters, ${number(d)} tokens`,
      ...(inside[i] ? [] : ["beyond what was trained"]),
    ];
  };

  function cellLines(cell, more = []) {
    const { losses } = cell, range = `${Math.min(...losses).toFixed(4)} to ${Math.max(...losses).toFixed(4)}, ${losses.length} seeds`;
    return [
      look(cell.family).name, `loss ${cell.loss.toFixed(4)} (${losses.length > 1 ? range : "one seed"})`,
      `${number(cell.n)} parameters, ${number(cell.d)} tokens`,
      ...Object.keys(COSTS).filter((kind) => cell[kind] !== null).map((kind) => `${COSTS[kind]}: ${writes[kind](cell[kind], 3)}`),
      ...(cell.predicted ? [`predicted ${cell.predicted[0].toFixed(4)} [${cell.predicted[1].toFixed(4)}, ${cell.predicted[2].toFixed(4)}]: ` + (cell.inside ? "inside" : "outside")] : []),
      ...more,
    ];
  }

  function cellMark({ root, x, y }, cell, px, lines) {
    const { colour, mark } = look(cell.family), at = x.at(px);
    for (const loss of cell.losses) root.append(svg("circle", { class: "dot f" + colour, cx: at, cy: y.at(loss), r: 2.2 }));
    if (cell.predicted) {
      const [middle, low, high] = cell.predicted.map(y.at), right = at + 11;
      const d = `M${right} ${low}V${high}M${right - 3} ${low}H${right + 3}M${right - 3} ${high}H${right + 3}M${right - 5} ${middle}H${right + 5}`;
      root.append(svg("path", { class: "expected f" + colour, d }));
    }
    const [my, least, most] = [cell.loss, Math.min(...cell.losses), Math.max(...cell.losses)].map(y.at);
    root.append(point({ x: [at, at, at], y: [my, least, most], colour, mark, hollow: cell.largest, lines }));
  }

  const familiesLegend = (name, shown, hidden, redraw) => legend(byId(name + "-legend"), shown.map((i) => ({
    key: i, label: look(i).name, colour: look(i).colour, icon: () => svg("path", { class: "mark", d: MARKS[look(i).mark] }),
  })), hidden, redraw);
  const nothing = (place) => { place.textContent = "Nothing to draw: no family is chosen, or none has this figure."; };

  // -- loss against cost -----------------------------------------------------------------------------------------------
  function drawLosses(kind, hidden) {
    const place = byId(kind);
    const cells = all.cells.filter((cell) => cell[kind] !== null && !hidden.has(cell.family));
    if (!cells.length) return nothing(place);
    const curves = all.best[kind].filter(({ family }) => !hidden.has(family));
    const heights = [...cells.flatMap((c) => [...c.losses, ...(c.predicted || [])]), ...curves.flatMap((c) => c.stops.flatMap((s) => s.slice(3)))];
    const labels = { label: "Loss against " + COSTS[kind], xLabel: COSTS[kind], yLabel: LOSS, xLog: true, xNumber: writes[kind] };
    const drawn = frame(place, labels, cells.map((c) => c[kind]), heights);
    for (const curve of curves) {
      const points = curve.stops.map(([cost, , , ...losses]) => [cost, ...losses]);
      law(drawn, points, curve.inside, look(curve.family).colour, look(curve.family).name, saysOf(curve.family, curve, kind));
    }
    for (const cell of cells) cellMark(drawn, cell, cell[kind], cellLines(cell));
  }

  for (const kind of Object.keys(COSTS)) {
    if (!byId(kind)) continue;
    const hidden = new Set(), draw = () => drawLosses(kind, hidden);
    familiesLegend(kind, all.shown.filter((i) => all.cells.some((cell) => cell.family === i)), hidden, draw);
    keepDrawn(byId(kind), draw);
  }

  // -- equal FLOPs -----------------------------------------------------------------------------------------------------
  const slicesHidden = new Set();
  function drawSlice(slice, place) {
    const curves = slice.curves.filter(({ family }) => !slicesHidden.has(family));
    const cells = slice.cells.map((i) => all.cells[i]).filter(({ family }) => !slicesHidden.has(family));
    if (!curves.length) return nothing(place);
    const title = power(slice.budget) + " FLOPs";
    const labels = { label: "Losses at " + title, xLabel: SIZE, yLabel: `${title}: ${LOSS}`, xLog: true, least: 260 };
    const heights = [...curves.flatMap((c) => c.stops.flatMap((s) => s.slice(3))), ...cells.flatMap((c) => c.losses)];
    const drawn = frame(place, labels, curves.flatMap((c) => c.stops.map((s) => s[1])), heights);
    for (const curve of curves) {
      const points = curve.stops.map(([, n, , ...losses]) => [n, ...losses]);
      law(drawn, points, curve.inside, look(curve.family).colour, look(curve.family).name, saysOf(curve.family, curve, "flops"));
    }
    for (const cell of cells) {
      const near = `${(cell.flops / slice.budget).toPrecision(3)} times this figure's FLOPs`;
      cellMark(drawn, { ...cell, predicted: null }, cell.n, cellLines({ ...cell, predicted: null }, [near]));
    }
  }
  if (all.slices.length) {
    const redraws = all.slices.map((slice, i) => () => drawSlice(slice, byId("slice-" + i)));
    familiesLegend("slices", all.slices[0].curves.map((c) => c.family), slicesHidden, () => redraws.forEach((draw) => draw()));
    redraws.forEach((draw, i) => keepDrawn(byId("slice-" + i), draw));
  }

  // -- tuning ----------------------------------------------------------------------------------------------------------
  const tuningHidden = new Set();
  // Losses far above the best would press the others together: they stand at the top with those that failed.
  const roof = (losses) => Math.min(...losses) * 1.3;
  function drawTuning({ key, size, lines }, place) {
    const shown = lines.filter(({ family }) => !tuningHidden.has(family));
    const known = shown.flatMap((l) => l.tried.map((t) => t[1])).filter((loss) => loss !== null), top = roof(known);
    if (!shown.length) return nothing(place);
    const heights = known.filter((loss) => loss <= top);
    const labels = { label: `Tuning at size ${size}`, xLabel: key, yLabel: LOSS, xLog: true, least: 260, xNumber: String };
    const values = shown.flatMap((l) => [...l.tried.map((t) => t[0]), ...(l.taken ? [l.taken] : [])]);
    const { root, x, y, box } = frame(place, labels, values, heights.length ? heights : [0, 1]);
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
      const px = x.at(line.taken), flag = svg("path", {
        class: `mark taken f${colour}${line.edge ? " hollow" : ""}`, d: `M${px} ${box.bottom}l-6 -10h12Z`,
      });
      explain(flag, [name, `taken: ${key} ${line.taken}`, ...(line.edge ? ["edge: a better one may lie beyond"] : [])]);
      root.append(flag);
    });
  }
  if (all.tuning.length) {
    const redraws = all.tuning.map((one, i) => () => drawTuning(one, byId("tuning-" + i)));
    const tuned = new Set(all.tuning.flatMap((one) => one.lines.map((l) => l.family)));
    familiesLegend("tuning", all.shown.filter((i) => tuned.has(i)), tuningHidden, () => redraws.forEach((draw) => draw()));
    redraws.forEach((draw, i) => keepDrawn(byId("tuning-" + i), draw));
  }

  // -- multipliers: a forest plot --------------------------------------------------------------------------------------
  const FARTHEST = 50;
  function drawMultipliers() {
    const place = byId("multipliers"), width = Math.max(280, place.clientWidth), rows = all.multipliers;
    const left = (m) => `${look(m.family).name}, equal ${m.axis}`, right = (m) => `${m.text} ${m.verdict}`;
    // Both texts stand on one line where that is wide enough, for all rows alike.
    const two = Math.max(...rows.map((m) => 7 * (left(m).length + right(m).length))) > width - 20;
    const high = two ? 62 : 46, height = 12 + high * rows.length + 46, bottom = height - 46;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": "Multipliers with their intervals" });
    place.replaceChildren(root);
    const held = (v, end) => Math.max(1 / FARTHEST, Math.min(FARTHEST, v === null ? end : v));
    const ends = rows.map((m) => [held(m.low, FARTHEST), held(m.high, FARTHEST), held(m.ratio, FARTHEST)]);
    const x = scale([1, ...ends.flat()], 12, width - 12, true, width / 90);
    for (const tick of x.ticks) {
      root.append(svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: 4, y2: bottom }));
      root.append(svg("text", { class: "tick", x: x.at(tick), y: bottom + 17, "text-anchor": "middle" }, number(tick)));
    }
    root.append(svg("line", { class: "event one", x1: x.at(1), x2: x.at(1), y1: 4, y2: bottom }));
    root.append(svg("text", { x: width - 12, y: height - 8, "text-anchor": "end" }, "multiplier (times the cost), logarithmic"));
    rows.forEach((m, i) => {
      const { colour, mark } = look(m.family), top = 12 + high * i, py = top + high - 16;
      root.append(svg("text", { class: "name", x: 12, y: top + 12 }, left(m)));
      root.append(svg("text", two ? { class: "name", x: 12, y: top + 27 } : { class: "name", x: width - 12, y: top + 12, "text-anchor": "end" }, right(m)));
      const [low, most, ratio] = ends[i].map(x.at);
      const group = point({ x: [ratio, low, most], y: [py, py, py], colour, mark, hollow: m.ratio === null, lines: [left(m), m.text, m.verdict] });
      // An end that is farther out than the figure has an arrow.
      if (m.high === null || m.high > FARTHEST) group.append(svg("path", { class: "cross", d: `M${most - 5} ${py - 4}l5 4l-5 4` }));
      if (m.low !== null && m.low < 1 / FARTHEST) group.append(svg("path", { class: "cross", d: `M${low + 5} ${py - 4}l-5 4l5 4` }));
      root.append(group);
    });
  }
  if (byId("multipliers")) keepDrawn(byId("multipliers"), drawMultipliers);

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
