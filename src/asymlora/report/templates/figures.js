"use strict";
/* One function for each figure: from what is chosen to traces, a layout and the records of what is drawn. */
(() => {
  const { data, cells, runs, plain, short, distinct, grouped, mean, median, known, least, most, rateText } = sweepPage;
  const figures = {};
  sweepPage.figures = figures;

  const inView = (chosen, run) => chosen.arms.has(run.cell.number) && chosen.ranks.has(run.k) && chosen.seeds.has(run.s);
  const shownCells = (chosen) => cells.filter((cell) => chosen.arms.has(cell.number));
  const ofCell = (chosen, cell, wanted) => runs.filter((run) => run.cell === cell && inView(chosen, run) && wanted(run));
  const told = (run, text) => plain(`${run.cell.label}, seed ${run.s}, rate ${rateText(run.lr)}: ${text}`) + `<br>run ${run.n}, ${run.st}`;
  const metricTitle = (name, scale) => plain(scale === 100 ? `${name}, %` : name);
  /* The runs that the verdicts are about: of a sweep that was gone on with, some closing runs may be at an older rate. */
  const isQuoted = (run) => run.p === "closing" && (!known(run.cell.closing_rate) || run.lr === run.cell.closing_rate);
  const isTuning = (run) => run.p === "tuning" || run.p === "search";
  const digits = (value) => Number(value.toPrecision(5));

  /* Rates ------------------------------------------------------------------------------------------------------- */

  const rateRuns = (chosen, cell) => {
    const tuned = runs.some((run) => run.cell === cell && isTuning(run));
    return ofCell(chosen, cell, (run) => (tuned ? isTuning(run) : run.p === "closing"));
  };
  /* As `asymlora.sweep.rates.divergence_edge` has it: a rate whose runs all failed tells nothing. Points of a search
     differ in more than the rate, so they have no edge. */
  const isLost = (run) => run.st === "diverged" || run.f === 1;
  const edge = (byRate) => {
    const rates = distinct([...byRate.keys()]).filter((rate) => byRate.get(rate).some((run) => run.st !== "failed")).reverse();
    if ([...byRate.values()].some((found) => found.some((run) => run.p === "search"))) return null;
    const stable = rates.findIndex((rate) => !byRate.get(rate).some((run) => isLost(run)));
    return stable === 0 ? null : rates[(stable < 0 ? rates.length : stable) - 1];
  };

  const isDrawn = (run) => run.st === "finished" || run.st === "pruned";
  const isWide = (values) => values.length > 0 && least(values) > 0 && most(values) / least(values) > 12;

  /* Draws values of single runs against the rate; `value` gives a run's, in the units of the axis. */
  const againstRate = (drawing, chosen, { value, title, quantity, log }) => {
    const groups = shownCells(chosen).map((cell) => [cell, rateRuns(chosen, cell)]).filter(([, found]) => found.length);
    const all = groups.flatMap(([, found]) => found);
    const values = all.filter(isDrawn).map(value).filter(known);
    const fit = (number) => (log ? Math.log10(number) : number);
    const [low, high] = values.length ? [fit(least(values)), fit(most(values))] : [0, 1];
    const span = high - low || Math.abs(high) * 0.1 || 1;
    const troubled = groups.filter(([, found]) => found.some(isLost));
    const bottom = low - span * (0.06 + 0.06 * troubled.length);
    const back = (number) => (log ? 10 ** number : number);
    groups.forEach(([cell, found]) => {
      const byRate = grouped(found, (run) => run.lr);
      const whole = distinct([...byRate.keys()]).filter((rate) => byRate.get(rate).every((run) => run.st === "finished" && run.p !== "search" && known(value(run))));
      const means = whole.map((rate) => mean(byRate.get(rate).map(value)));
      const ends = whole.map((rate) => byRate.get(rate).map(value)).map((each) => [Math.min(...each), Math.max(...each)]);
      if (byRate.size && ends.some(([least, most]) => least < most)) drawing.band(cell, whole, ends.map((end) => end[0]), ends.map((end) => end[1]));
      drawing.line(cell, whole, means);
      whole.forEach((rate, number) => drawing.record({ arm: cell.label, what: "mean", learning_rate: rate, [quantity]: means[number], low: ends[number][0], high: ends[number][1] }));
      [["finished", {}], ["pruned", { symbol: `${drawing.look(cell).marker}-open`, size: 9, opacity: 1, line: { width: 1.5 } }]].forEach(([status, marker]) => {
        const points = found.filter((run) => run.st === status && known(value(run)));
        drawing.points(cell, points.map((run) => run.lr), points.map(value), points.map((run) => told(run, `${quantity} ${digits(value(run))}`)), marker, { meta: status });
        points.forEach((run) => drawing.record({ arm: cell.label, what: status, learning_rate: run.lr, [quantity]: value(run), seed: run.s, rank: run.k, run: run.n }, run));
      });
      const lost = found.filter((run) => run.st === "diverged");
      const row = troubled.findIndex((group) => group[0] === cell);
      const height = back(bottom + span * 0.06 * (0.6 + troubled.length - 1 - row));
      drawing.points(cell, lost.map((run) => run.lr), lost.map(() => height), lost.map((run) => told(run, `diverged at step ${run.x}`)), { symbol: "x-thin", size: 9, opacity: 1, line: { width: 2, color: drawing.look(cell).colour } }, { meta: "diverged" });
      lost.forEach((run) => drawing.record({ arm: cell.label, what: "diverged", learning_rate: run.lr, seed: run.s, rank: run.k, run: run.n }, run));
      const from = edge(byRate);
      if (from !== null) {
        /* Edges of two arms at one rate would hide each other: each is moved by its row, by a hundredth of a decade. */
        const at = from * 10 ** (0.012 * (row - (troubled.length - 1) / 2));
        const look = drawing.look(cell);
        drawing.traces.push({ type: "scatter", mode: "lines", x: [at, at], y: [back(bottom), back(high + span * 0.07)], line: { color: look.colour, dash: look.dash, width: 1.5 }, opacity: 0.7, showlegend: false, hoverinfo: "text", hovertext: plain(`${cell.label}: unstable from ${rateText(from)} on`), meta: "edge" });
        drawing.record({ arm: cell.label, what: "divergence edge", learning_rate: from });
      }
      const best = whole.indexOf(cell.best_rate);
      if (best >= 0) {
        drawing.points(cell, [cell.best_rate], [means[best]], [plain(`${cell.label}: chosen rate ${rateText(cell.best_rate)}, mean ${digits(means[best])}`)], { symbol: "circle-open", size: 17, opacity: 1, line: { width: 2 } }, { meta: "chosen" });
      }
    });
    if (all.some((run) => run.p === "closing")) drawing.said.push("Arms without tuning runs are drawn from their closing runs.");
    const failed = all.filter((run) => run.st === "failed").length;
    if (failed) drawing.said.push(failed === 1 ? "One failed run has nothing to draw." : `${failed} failed runs have nothing to draw.`);
    drawing.layout.xaxis = drawing.rateAxis(all.length ? all.map((run) => run.lr) : [1e-4, 1e-2]);
    const range = [bottom, high + span * 0.07];
    drawing.layout.yaxis = log ? drawing.logAxis(title, values.length ? values : [1, 10], { range }) : drawing.axis(title, { range });
  };

  figures.metric = (drawing, chosen, options) => {
    const name = options.measure || data.sweeps[0].metric;
    const own = data.sweeps.filter((sweep) => sweep.metric === name);
    const scale = own.length ? own[0].scale : 1;
    const value = (run) => (run.m === name && known(run.v) ? run.v * scale : null);
    if (data.sweeps.length > own.length) drawing.said.push("Sweeps of another metric are not drawn here: choose it above.");
    const shown = { ...chosen, arms: new Set([...chosen.arms].filter((arm) => own.includes(cells[arm].sweep))) };
    const values = runs.filter((run) => inView(shown, run) && isDrawn(run)).map(value).filter(known);
    const less = own.length && !own[0].greater_is_better;
    const log = less && isWide(values); /* a perplexity, say, which grows without bound */
    againstRate(drawing, shown, { value, title: metricTitle(`${name} on validation`, scale) + (less ? " (less is better)" : ""), quantity: scale === 100 ? `${name}_percent` : name, log });
  };

  const lastLoss = (run) => (run.l ? run.l.loss.filter(known).at(-1) ?? null : null);
  figures.loss = (drawing, chosen, options) => {
    const values = runs.filter((run) => inView(chosen, run) && isDrawn(run)).map(lastLoss).filter(known);
    const log = (options.scale === "log" && values.length > 0 && least(values) > 0) || (options.scale === "auto" && isWide(values));
    againstRate(drawing, chosen, { value: lastLoss, title: "final training loss", quantity: "training_loss", log });
  };

  /* Closing ----------------------------------------------------------------------------------------------------- */

  figures.closing = (drawing, chosen, options) => {
    const measure = options.measure || data.sweeps[0].metric;
    const rows = shownCells(chosen).map((cell) => [cell, ofCell(chosen, cell, (run) => isQuoted(run) && run.st === "finished" && run.t && known(run.t[measure]))]).filter(([, found]) => found.length);
    const raw = rows.flatMap(([, found]) => found.map((run) => run.t[measure]));
    const scale = rows.length && rows[0][0].sweep.scale === 100 && raw.every((value) => value >= 0 && value <= 1) ? 100 : 1;
    const quantity = scale === 100 ? `${measure}_percent` : measure;
    const seeds = distinct(rows.flatMap(([, found]) => found.map((run) => run.s)));
    const place = (row, seed) => row + (seeds.length > 1 ? 0.3 * (seeds.indexOf(seed) / (seeds.length - 1) - 0.5) : 0);
    const [x, y] = [[], []];
    grouped(rows.flatMap(([, found], row) => found.map((run) => [run, row])), ([run]) => `${data.sweeps.indexOf(run.sweep)} ${run.s}`).forEach((pairs) => {
      pairs.forEach(([run, row]) => { x.push(run.t[measure] * scale); y.push(place(row, run.s)); });
      x.push(null); y.push(null);
    });
    drawing.traces.push({ type: "scatter", mode: "lines", x, y, line: { color: drawing.theme.soft, width: 1 }, opacity: 0.35, hoverinfo: "skip", showlegend: false, meta: "pairs" });
    rows.forEach(([cell, found], row) => {
      const values = found.map((run) => run.t[measure] * scale);
      drawing.points(cell, values, found.map((run) => place(row, run.s)), found.map((run, n) => told(run, `${measure} ${digits(values[n])}`)), { size: 8, opacity: 0.7 }, { meta: "seeds" });
      found.forEach((run, n) => drawing.record({ arm: cell.label, what: "seed", [quantity]: values[n], seed: run.s, rank: run.k, learning_rate: run.lr, run: run.n }, run));
      const middle = mean(values);
      const whole = cell.interval && measure === cell.sweep.metric && cell.closing.length === values.length;
      const [low, high] = whole ? [cell.interval.low * scale, cell.interval.high * scale] : [Math.min(...values), Math.max(...values)];
      const words = whole ? `${cell.interval.level * 100} % interval` : "range of seeds";
      /* Student's interval of two seeds leaves what an accuracy can be, and would stretch the axis. */
      const [left, right] = scale === 100 ? [Math.max(low, 0), Math.min(high, 100)] : [low, high];
      if (left > low || right < high) drawing.said.push(`${short(cell.label, 60)}: the bar is cut where the metric ends.`);
      drawing.points(cell, [middle], [row - 0.3], [plain(`${cell.label}: mean ${digits(middle)}, ${words} ${digits(low)} to ${digits(high)}`)], { symbol: "diamond", size: 11, opacity: 1 }, { meta: words, error_x: { type: "data", symmetric: false, array: [right - middle], arrayminus: [middle - left], thickness: 2, width: 5, color: drawing.look(cell).colour } });
      drawing.record({ arm: cell.label, what: `mean, ${words}`, [quantity]: middle, low, high });
      if (!whole) drawing.said.push(`${short(cell.label, 60)}: the bar is the range of the seeds that are shown.`);
    });
    if (!rows.length) drawing.said.push("No closing run that is shown has this metric.");
    drawing.said = drawing.said.length > 3 ? ["Bars are ranges of the seeds that are shown."] : drawing.said;
    if (runs.some((run) => inView(chosen, run) && run.p === "closing" && !isQuoted(run))) drawing.said.push("Closing runs at another rate than the arm's are not drawn.");
    const less = rows.length && measure === rows[0][0].sweep.metric && !rows[0][0].sweep.greater_is_better;
    drawing.layout.height = 92 + Math.max(rows.length, 1) * (drawing.narrow ? 62 : 70);
    drawing.layout.xaxis = drawing.axis(metricTitle(`${measure} on test`, scale) + (less ? " (less is better)" : ""));
    drawing.layout.yaxis = drawing.axis("", { range: [rows.length - 0.5, -0.62], tickvals: rows.map((_, n) => n), ticktext: rows.map(([cell]) => short(cell.label, drawing.narrow ? 12 : 30)), showgrid: false, ticks: "" });
  };

  /* Curves ------------------------------------------------------------------------------------------------------ */

  const chosenRuns = (chosen, cell, mode) => ofCell(chosen, cell, (run) => ({
    closing: isQuoted(run), best: run.p === "tuning" && run.lr === cell.best_rate, tuning: isTuning(run), all: true,
  })[mode]);

  /* Every run as a thin line, all of one trace; the mean as long as all runs go on. */
  const drawCurves = (drawing, cell, found, { curve, quantity, scale = 1, place = {}, legend, positive = false }) => {
    const usable = (value) => known(value) && (!positive || value > 0);
    const each = found.map((run) => ({ run, at: curve(run) && cell.sweep.steps[curve(run).at], values: curve(run) && curve(run)[quantity] })).filter((one) => one.values && one.values.some(usable));
    if (!each.length) return [];
    const [x, y, texts] = [[], [], []];
    each.forEach(({ run, at, values }) => {
      at.forEach((step, n) => {
        x.push(step); y.push(usable(values[n]) ? values[n] * scale : null);
        texts.push(told(run, `${quantity} ${known(values[n]) ? digits(values[n] * scale) : "-"} at step ${step}`));
        drawing.record({ arm: cell.label, what: "run", quantity, step, value: usable(values[n]) ? values[n] * scale : null, seed: run.s, rank: run.k, learning_rate: run.lr, run: run.n }, run);
      });
      x.push(null); y.push(null); texts.push("");
    });
    const { colour, dash, name } = drawing.look(cell);
    const several = distinct(each.map(({ run }) => run.lr)).length > 1;
    const thin = { mode: each.some(({ at }) => at.length === 1) ? "lines+markers" : "lines", line: { color: colour, width: 1, dash: several ? dash : "solid" }, opacity: several ? 0.6 : 0.35 };
    drawing.points(cell, x, y, texts, { size: 4 }, { ...thin, ...place, meta: "runs", name, showlegend: several && legend });
    if (several) {
      const note = "Runs at several rates have no mean in common; every run is drawn by itself.";
      if (!drawing.said.includes(note)) drawing.said.push(note);
      return y.filter(known);
    }
    const byStep = grouped(each.flatMap(({ at, values }) => at.map((step, n) => [step, values[n]])), (pair) => pair[0]);
    const steps = distinct([...byStep.keys()]).filter((step) => byStep.get(step).length === each.length && byStep.get(step).every((pair) => usable(pair[1])));
    const columns = steps.map((step) => byStep.get(step).map((pair) => pair[1] * scale));
    const [low, high] = [columns.map((column) => Math.min(...column)), columns.map((column) => Math.max(...column))];
    if (each.length > 1) drawing.band(cell, steps, low, high, place);
    drawing.line(cell, steps, columns.map(mean), { showlegend: legend, marker: { symbol: drawing.look(cell).marker, size: 7, maxdisplayed: 8 }, ...place });
    steps.forEach((step, n) => drawing.record({ arm: cell.label, what: "mean", quantity, step, value: mean(columns[n]), low: low[n], high: high[n] }));
    return y.filter(known);
  };

  const panels = (drawing, count, across) => {
    const down = Math.ceil(count / across);
    const [gapX, gapY] = [drawing.width < 900 ? 0.11 : 0.085, down > 1 ? 0.36 / down : 0];
    const wide = (1 - gapX * (across - 1)) / across;
    const tall = (1 - gapY * (down - 1)) / down;
    return Array.from({ length: count }, (_, n) => {
      const [column, row] = [n % across, Math.floor(n / across)];
      const left = column * (wide + gapX);
      const top = 1 - row * (tall + gapY);
      return { suffix: n ? String(n + 1) : "", x: [left, left + wide], y: [Math.max(top - tall, 0), top], last: n + across >= count };
    });
  };
  const heading = (drawing, panel, text) => ({ text, x: panel.x[0], y: panel.y[1], xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 6, showarrow: false, font: { size: drawing.narrow ? 12 : 13, color: drawing.theme.ink } });
  const emptied = (drawing, mode) => {
    if (!drawing.traces.length) drawing.said.push(mode === "closing" ? "There is no closing run to show; choose tuning runs above." : "There is nothing to show of these runs.");
  };

  figures.curves = (drawing, chosen, options) => {
    const both = panels(drawing, 2, drawing.narrow ? 1 : 2);
    const measures = [...new Set(data.sweeps.map((sweep) => sweep.metric))];
    const scale = data.sweeps.every((sweep) => sweep.scale === 100) ? 100 : 1;
    drawing.layout.annotations = [heading(drawing, both[0], "training loss"), heading(drawing, both[1], metricTitle(`${measures.join(", ")} on validation`, scale))];
    if (measures.length > 1) drawing.said.push("Sweeps of different metrics share the axis on validation.");
    let losses = [];
    const log = options.scale === "log";
    shownCells(chosen).forEach((cell) => {
      const found = chosenRuns(chosen, cell, options.runs);
      losses = losses.concat(drawCurves(drawing, cell, found, { curve: (run) => run.l, quantity: "loss", legend: true, positive: log }));
      drawCurves(drawing, cell, found, { curve: (run) => run.e, quantity: "value", scale, place: { xaxis: "x2", yaxis: "y2" }, legend: false });
    });
    drawing.layout.height = drawing.narrow ? 600 : 420;
    drawing.layout.margin.t = 34;
    drawing.layout.legend.y = drawing.narrow ? 1.06 : 1.1;
    drawing.layout.xaxis = drawing.axis("step", { domain: both[0].x, anchor: "y", rangemode: "tozero" });
    drawing.layout.xaxis2 = drawing.axis("step", { domain: both[1].x, anchor: "y2", rangemode: "tozero" });
    drawing.layout.yaxis = log && losses.length ? drawing.logAxis("", losses, { domain: both[0].y }) : drawing.axis("", { domain: both[0].y });
    drawing.layout.yaxis2 = drawing.axis("", { domain: both[1].y, anchor: "x2" });
    emptied(drawing, options.runs);
  };

  const QUANTITIES = {
    features: [["Z_A", "Z_A"], ["Z_B", "Z_B"], ["delta1", "δ1: A moved"], ["delta2", "δ2: B moved"], ["delta3", "δ3: both moved"]],
    steps: [["grad_A", "gradient of A"], ["grad_B", "gradient of B"], ["update_A", "update of A"], ["update_B", "update of B"], ["norm_B", "norm of B"]],
  };
  figures.dynamics = (drawing, chosen, options) => {
    const wanted = QUANTITIES[options.quantities];
    const across = drawing.width > 760 ? 3 : drawing.narrow ? 1 : 2;
    const places = panels(drawing, wanted.length, across);
    const inLegend = new Set();
    drawing.layout.annotations = [];
    wanted.forEach(([quantity, words], n) => {
      const panel = places[n];
      const place = { xaxis: `x${panel.suffix}`, yaxis: `y${panel.suffix}` };
      const values = shownCells(chosen).flatMap((cell) => {
        const found = drawCurves(drawing, cell, chosenRuns(chosen, cell, options.runs), { curve: (run) => run.d, quantity, place, legend: !inLegend.has(cell.number), positive: true });
        if (found.length) inLegend.add(cell.number);
        return found;
      });
      drawing.layout.annotations.push(heading(drawing, panel, words));
      drawing.layout[`xaxis${panel.suffix}`] = drawing.axis(panel.last ? "step" : "", { domain: panel.x, anchor: `y${panel.suffix}`, rangemode: "tozero" });
      drawing.layout[`yaxis${panel.suffix}`] = values.length ? drawing.logAxis("", values, { domain: panel.y, anchor: `x${panel.suffix}` }) : drawing.axis("", { domain: panel.y, anchor: `x${panel.suffix}`, showticklabels: false });
      if (!values.length) drawing.layout.annotations.push({ text: "not measured", x: mean(panel.x), y: mean(panel.y), xref: "paper", yref: "paper", showarrow: false, font: { color: drawing.theme.soft } });
    });
    const down = Math.ceil(wanted.length / across);
    drawing.layout.height = 70 + down * (drawing.narrow ? 210 : 250);
    drawing.layout.margin.t = 34;
    drawing.layout.legend.y = 1 + 34 / (down * 220);
    emptied(drawing, options.runs);
  };

  /* Similarity -------------------------------------------------------------------------------------------------- */

  figures.similarity = (drawing, chosen, options) => {
    const pairs = data.sweeps.flatMap((sweep) => sweep.pairs.map((pair) => ({ ...pair, sweep }))).filter(({ a, b }) => [a, b].every((run) => inView(chosen, run) && isQuoted(run)) && (options.pairs === "all" || (options.pairs === "same") === (a.s === b.s)));
    const stacked = drawing.narrow;
    const both = stacked ? [{ suffix: "", x: [0, 1], y: [0.56, 1] }, { suffix: "2", x: [0, 1], y: [0, 0.44] }] : panels(drawing, 2, 2);
    const shown = distinct(pairs.flatMap(({ a, b }) => [a.cell.number, b.cell.number])).map((number) => cells[number]);
    const name = (cell) => short(cell.label, drawing.narrow ? 14 : 22);
    drawing.layout.annotations = [];
    const heights = [];
    const all = [];
    ["A", "B"].forEach((factor, n) => {
      const table = options.by === "sites" ? bySite(pairs, factor, name) : byArm(pairs, factor, shown, name);
      const panel = both[n];
      const suffix = panel.suffix;
      heights.push(table.down.length);
      all.push(...table.values.flat().filter(known));
      const few = table.down.length * table.across.length <= 80;
      drawing.traces.push({
        type: "heatmap", z: table.values, x: table.across.map((_, k) => k), y: table.down.map((_, k) => k), coloraxis: "coloraxis", xaxis: `x${suffix}`, yaxis: `y${suffix}`, xgap: 2, ygap: 2,
        hovertext: table.texts, hoverinfo: "text", hoverongaps: false, texttemplate: few ? "%{z:.2f}" : "", meta: factor,
      });
      table.records.forEach((record) => drawing.record({ factor, ...record }));
      const chance = pairs.map((pair) => pair.chance[factor]).filter(known);
      drawing.layout.annotations.push(heading(drawing, panel, `${factor}${chance.length ? `: chance level ${digits(median(chance)).toPrecision(2)}` : ""}`));
      const labels = n && !stacked ? table.down.map(() => "") : table.down;
      const columns = stacked && !n ? table.across.map(() => "") : table.across;
      drawing.layout[`xaxis${suffix}`] = drawing.axis("", { domain: panel.x, anchor: `y${suffix}`, tickvals: table.across.map((_, k) => k), ticktext: columns, showgrid: false, ticks: "", showline: false, tickangle: table.across.some((text) => text.length > 9) ? -40 : 0 });
      drawing.layout[`yaxis${suffix}`] = drawing.axis("", { domain: panel.y, anchor: `x${suffix}`, tickvals: table.down.map((_, k) => k), ticktext: labels, showgrid: false, ticks: "", showline: false, autorange: "reversed" });
    });
    const top = Math.max(0.2, Math.ceil(Math.max(0, ...all) * 10) / 10);
    drawing.layout.coloraxis = { colorscale: "Cividis", cmin: 0, cmax: top, colorbar: { thickness: 10, outlinewidth: 0, len: 0.9, title: { text: "CCA", side: "top" } } };
    const tall = Math.max(...heights, 1) * (options.by === "sites" ? 19 : 54);
    drawing.layout.height = stacked ? 200 + 2 * tall : 170 + Math.max(tall, 130);
    drawing.layout.margin.t = 34;
    drawing.said.push(`${pairs.length} pairs of adapters.`);
    const strangers = data.sweeps.reduce((sum, sweep) => sum + sweep.similarity.strangers, 0);
    if (strangers) drawing.said.push(`${strangers} rows name no run of the sweep and are left out.`);
  };

  const middle = (values) => (values.length ? digits(median(values)) : null);

  const byArm = (pairs, factor, shown, name) => {
    const of = (one, other) => pairs.filter(({ a, b }) => (a.cell === one && b.cell === other) || (a.cell === other && b.cell === one));
    const found = shown.map((one) => shown.map((other) => of(one, other)));
    const values = found.map((row) => row.map((each) => middle(each.flatMap((pair) => pair[factor].filter(known)))));
    const texts = found.map((row, n) => row.map((each, k) => plain(`${shown[n].label} ~ ${shown[k].label}: `) + `${values[n][k] ?? "-"}<br>median over ${each.length} pairs and all layers`));
    const records = values.flatMap((row, n) => row.map((value, k) => ({ first: shown[n].label, second: shown[k].label, site: "median of all", cca: value, pairs: found[n][k].length })));
    return { down: shown.map(name), across: shown.map(name), values, texts, records };
  };

  const bySite = (pairs, factor, name) => {
    const kinds = [...grouped(pairs, ({ a, b }) => [a.cell.number, b.cell.number].sort((x, y) => x - y).join(" ")).entries()].map(([key, of]) => [key.split(" ").map((number) => cells[Number(number)]), of]);
    kinds.sort(([[a, b]], [[c, d]]) => a.number - c.number || b.number - d.number);
    const sites = [...new Set(pairs.flatMap((pair) => pair.sweep.similarity.sites))];
    const at = (pair, site) => pair[factor][pair.sweep.similarity.sites.indexOf(site)];
    const values = sites.map((site) => kinds.map(([, of]) => middle(of.map((pair) => at(pair, site)).filter(known))));
    const texts = sites.map((site, n) => kinds.map(([[one, other], of], k) => plain(`${site}, ${one.label} ~ ${other.label}: `) + `${values[n][k] ?? "-"}<br>median over ${of.length} pairs`));
    const records = values.flatMap((row, n) => row.map((value, k) => ({ first: kinds[k][0][0].label, second: kinds[k][0][1].label, site: sites[n], cca: value, pairs: kinds[k][1].length })));
    return { down: shortSites(sites), across: kinds.map(([[one, other]]) => (one === other ? name(one) : `${name(one)} ~ ${name(other)}`)), values, texts, records };
  };

  /* Without the leading parts that all sites share. */
  const shortSites = (sites) => {
    const parts = sites.map((site) => site.split("."));
    let same = 0;
    while (parts.length > 1 && parts.every((each) => each.length > same + 1 && each[same] === parts[0][same])) same += 1;
    return parts.map((each) => short(each.slice(same).join("."), 28));
  };
})();
