// Draws the curves of a ladder's law with its runs; drawing.js stands before it, scaling_panels.js follows.
const ladder = (() => {
  const { data, byId, svg, number, power, show, hide, legend, frame, path, point, stretch, keepDrawn, MARKS } = drawing;
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

  return { look, familiesLegend, nothing, LOSS, COSTS };
})();
