"use strict";
/* What figures are drawn from, how an arm looks, and the parts that several figures share. Nothing here touches the
   page but the reading of its records. */
const sweepPage = {};
(() => {
  const data = JSON.parse(document.getElementById("records").textContent);
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid"];
  const MARKERS = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star"];
  const cells = [];
  const runs = [];
  data.sweeps.forEach((sweep) => {
    const [firstCell, firstRun] = [cells.length, runs.length];
    sweep.cells.forEach((cell) => {
      const label = data.sweeps.length > 1 && cell.label !== sweep.name ? `${sweep.name}: ${cell.label}` : cell.label;
      cells.push({ ...cell, label, sweep, number: cells.length });
    });
    sweep.runs.forEach((run) => runs.push({ ...run, cell: cells[firstCell + run.c], sweep }));
    sweep.pairs = sweep.similarity.pairs.map((pair) => ({ ...pair, a: runs[firstRun + pair.a], b: runs[firstRun + pair.b] }));
  });

  /* Plotly reads a little HTML and TeX in labels; a name is neither. */
  const SIGNS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" };
  const plain = (text) => String(text).replace(/\s+/g, " ").replace(/[&<>$]/g, (sign) => SIGNS[sign]);
  /* The end stays: labels often differ there alone. */
  const short = (text, length) => {
    const signs = [...text];
    const tail = Math.floor(length / 3);
    return plain(signs.length > length ? `${signs.slice(0, length - tail - 1).join("")}…${signs.slice(-tail).join("")}` : text);
  };
  const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);
  const grouped = (items, key) => {
    const groups = new Map();
    items.forEach((item) => {
      if (!groups.has(key(item))) groups.set(key(item), []);
      groups.get(key(item)).push(item);
    });
    return groups;
  };
  const spans = (numbers) => distinct(numbers).reduce((ranges, number) => {
    const last = ranges[ranges.length - 1];
    if (last && number === last[1] + 1) last[1] = number;
    else ranges.push([number, number]);
    return ranges;
  }, []).map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(", ");
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const half = sorted.length / 2;
    return sorted.length % 2 ? sorted[Math.floor(half)] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const known = (value) => value !== null && value !== undefined;
  /* Not Math.min(...values): a call takes some ten thousand arguments at most, and curves have more values. */
  const least = (values) => values.reduce((low, value) => Math.min(low, value), Infinity);
  const most = (values) => values.reduce((high, value) => Math.max(high, value), -Infinity);
  /* Of a long axis not every value is written: those that have room. */
  const rateText = (rate) => {
    const [digits, exponent] = rate.toExponential(1).split("e");
    return `${Number(digits)}e${Number(exponent)}`;
  };

  const numberText = (value) => (value >= 0.01 && value < 10000 ? String(value) : rateText(value));

  class Drawing {
    constructor(theme, width) {
      this.theme = theme;
      this.width = width;
      this.narrow = width < 560;
      this.traces = [];
      this.records = [];
      this.runs = new Set();
      this.said = [];
      this.layout = {
        autosize: true,
        height: this.narrow ? 340 : 410,
        margin: { l: this.narrow ? 50 : 64, r: 12, t: 12, b: 52 },
        paper_bgcolor: theme.paper,
        plot_bgcolor: theme.paper,
        font: { family: theme.font, size: this.narrow ? 11 : 12.5, color: theme.ink },
        hovermode: "closest",
        hoverlabel: { bgcolor: theme.paper, bordercolor: theme.line, font: { color: theme.ink, size: 12 }, align: "left" },
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.03, yanchor: "bottom", tracegroupgap: 0, itemclick: false, itemdoubleclick: false },
        dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      };
    }

    /* Colour, dash and marker, so that none of them is needed alone; shifted when the colours begin again. */
    look(cell) {
      const turn = Math.floor(cell.number / data.colours.length);
      const colour = data.colours[cell.number % data.colours.length];
      const own = { "#000000": this.theme.ink, ...(this.theme.dark ? { "#0072B2": "#3d94d1" } : {}) }; /* too dim on dark */
      return {
        colour: own[colour] || colour,
        dash: DASHES[(cell.number + turn) % DASHES.length],
        marker: MARKERS[(cell.number + turn) % MARKERS.length],
        name: short(cell.label, this.narrow ? 22 : 40),
      };
    }

    axis(title, more = {}) {
      const { line, soft } = this.theme;
      return {
        title: { text: title, font: { color: soft, size: this.layout.font.size }, standoff: 10 }, gridcolor: line, zeroline: false, showline: true,
        linecolor: soft, ticks: "outside", tickcolor: soft, ticklen: 4, automargin: true, ...more,
      };
    }

    rateAxis(rates) {
      const logs = rates.map(Math.log10);
      const [low, high] = [least(logs) - 0.15, most(logs) + 0.15];
      const apart = ((high - low) * 48) / Math.max(this.width - 80, 120);
      const ticks = [];
      distinct(rates).forEach((rate) => {
        if (!ticks.length || Math.log10(rate / ticks[ticks.length - 1]) >= apart) ticks.push(rate);
      });
      return this.axis("learning rate (train.lr)", { type: "log", range: [low, high], tickvals: ticks, ticktext: ticks.map(rateText) });
    }

    /* A log axis of a short range has ticks between the powers of ten, a long one at the powers, some left out. */
    logAxis(title, values, more = {}) {
      const logs = [Math.log10(least(values)), Math.log10(most(values))];
      const pad = Math.max(0.15 - (logs[1] - logs[0]) / 2, 0.07 * (logs[1] - logs[0]));
      const [low, high] = more.range || [logs[0] - pad, logs[1] + pad];
      const span = high - low;
      const digits = span < 0.7 ? [1, 1.5, 2, 3, 5, 7] : span < 1.8 ? [1, 2, 5] : [1];
      const powers = Array.from({ length: Math.ceil(span) + 2 }, (_, n) => Math.floor(low) + n).filter((power) => power % Math.ceil(span / 5.5) === 0);
      const ticks = powers.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
      return this.axis(title, { type: "log", range: [low, high], tickvals: ticks, ticktext: ticks.map(numberText), ...more });
    }

    /* A figure without anything to draw says so instead of showing axes. */
    emptyOut() {
      const hasData = this.traces.some((trace) => (trace.z || trace.x).length);
      if (hasData) return;
      const text = "Nothing to draw of what is shown";
      Object.keys(this.layout).filter((key) => /^[xy]axis/.test(key)).forEach((key) => { this.layout[key] = { visible: false }; });
      this.layout.annotations = [{ text, x: 0.5, y: 0.5, xref: "paper", yref: "paper", showarrow: false, font: { color: this.theme.soft } }];
      this.layout.height = 150;
      this.traces = [];
    }

    line(cell, x, y, more = {}) {
      const look = this.look(cell);
      this.traces.push({
        type: "scatter", mode: "lines+markers", x, y, name: look.name, legendgroup: String(cell.number), hoverinfo: "skip",
        line: { color: look.colour, dash: look.dash, width: 2.25 }, marker: { symbol: look.marker, size: 8 }, ...more,
      });
    }

    band(cell, x, low, high, more = {}) {
      if (!x.length) return;
      this.traces.push({
        type: "scatter", mode: "lines", x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself",
        fillcolor: this.look(cell).colour, opacity: this.theme.dark ? 0.22 : 0.14, line: { width: 0 }, hoverinfo: "skip",
        showlegend: false, legendgroup: String(cell.number), meta: "band", ...more,
      });
    }

    points(cell, x, y, texts, marker, more = {}) {
      if (!x.length) return;
      const look = this.look(cell);
      this.traces.push({
        type: "scatter", mode: "markers", x, y, hovertext: texts, hoverinfo: "text", showlegend: false,
        legendgroup: String(cell.number), marker: { color: look.colour, symbol: look.marker, size: 6, opacity: this.theme.dark ? 0.9 : 0.75, ...marker }, ...more,
      });
    }

    /* Plotly gives the legend room at the cost of the plot; the figure grows by its further rows instead. */
    makeRoomForLegend() {
      const names = this.traces.filter((trace) => trace.showlegend !== false && trace.name).map((trace) => [...trace.name.replace(/&[^;]+;/g, " ")].length);
      if (!names.length) return;
      const entry = 48 + Math.max(...names) * this.layout.font.size * 0.58;
      const rows = Math.ceil(names.length / Math.max(1, Math.floor((this.width - 70) / entry)));
      this.layout.height += (rows - 1) * 20;
      this.layout.legend.maxheight = rows * 22 + 14;
    }

    /* A line of the table of what is drawn; of one run, its run. */
    record(values, run) {
      this.records.push(values);
      if (run) this.runs.add(run);
    }
  }

  Object.assign(sweepPage, { data, cells, runs, Drawing, plain, short, spans, distinct, grouped, mean, median, known, least, most, rateText });
})();
