"use strict";
/* What the page does: filters and their place in the address, drawing when seen, light and dark, downloads, print. */
(() => {
  const { data, cells, runs, Drawing, distinct, spans, figures } = sweepPage;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;
  const chosen = { arms: new Set(cells.map((cell) => cell.number)), ranks: new Set(runs.map((run) => run.k)), seeds: new Set(runs.map((run) => run.s)) };
  const every = { arms: [...chosen.arms], ranks: distinct(chosen.ranks), seeds: distinct(chosen.seeds) };
  const named = { arms: (number) => cells[number].label, ranks: (rank) => `${rank}`, seeds: (seed) => `${seed}` };
  const darkly = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();
  let printing = false;
  let opened = [];

  const theme = () => {
    const dark = !printing && (root.dataset.theme ? root.dataset.theme === "dark" : darkly.matches);
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const light = { paper: "#ffffff", ink: "#000000", soft: "#444444", line: "#cccccc" };
    const own = { paper: colour("--paper"), ink: colour("--ink"), soft: colour("--soft"), line: colour("--line") };
    return { ...(printing ? light : own), dark, font: getComputedStyle(document.body).fontFamily };
  };

  /* Drawing ----------------------------------------------------------------------------------------------------- */

  const optionsOf = (figure) => Object.fromEntries(all("select", figure).map((select) => [select.dataset.option, select.value]));
  /* Below a figure stands what it shows at first; another choice of it is said. */
  const sayWhatIsDrawn = (drawing, name) => {
    const shown = data.sweeps.map((sweep) => [sweep, spans([...drawing.runs].filter((run) => run.sweep === sweep).map((run) => run.n))]);
    const usual = shown.every(([sweep, numbers]) => (numbers ? sweep.sources[name].includes(`runs ${numbers} of`) : !sweep.sources[name].startsWith("runs ")));
    if (usual || !drawing.runs.size) return;
    const texts = shown.filter(([, numbers]) => numbers).map(([sweep, numbers]) => `runs ${numbers}${data.sweeps.length > 1 ? ` of ${sweep.name}` : ""}`);
    drawing.said.push(`Drawn now: ${texts.join("; ")}.`);
  };
  const draw = (figure) => {
    const plot = figure.querySelector(".plot");
    const drawing = new Drawing(theme(), printing ? 680 : plot.clientWidth);
    figures[figure.dataset.figure](drawing, chosen, optionsOf(figure));
    drawing.emptyOut();
    drawing.makeRoomForLegend();
    if (printing) Object.assign(drawing.layout, { width: 680, autosize: false });
    sayWhatIsDrawn(drawing, figure.dataset.figure);
    figure.querySelector(".said").textContent = drawing.said.join(" ");
    plot.style.minHeight = `${drawing.layout.height}px`;
    drawn.set(figure, drawing);
    Plotly.react(plot, drawing.traces, drawing.layout, { displayModeBar: false, responsive: !printing, scrollZoom: false });
    figure.dataset.drawn = String(Number(figure.dataset.drawn || 0) + 1);
    performance.mark(`drawn ${figure.dataset.figure}`); /* for who times the page from outside */
  };
  const stale = new Set(all("figure[data-figure]"));
  const near = new Set();
  let waiting = false;
  /* One figure at a time, so that the page answers in between. */
  const drawNext = () => {
    waiting = false;
    const next = [...stale].find((figure) => near.has(figure));
    if (!next) return;
    stale.delete(next);
    draw(next);
    wait();
  };
  const wait = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(drawNext, 0);
  };
  const redraw = () => {
    drawn.forEach((_, figure) => stale.add(figure));
    wait();
  };
  const drawNow = (figure) => {
    stale.delete(figure);
    draw(figure);
  };
  const drawAll = () => all("figure[data-figure]").forEach(drawNow);
  Object.assign(sweepPage, { drawAll, drawNow: (name) => drawNow(document.getElementById(`figure-${name}`)) });

  /* Filters ----------------------------------------------------------------------------------------------------- */

  const sample = (cell) => {
    const dashes = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3", longdashdot: "9 2 2 2" };
    const look = new Drawing({ ink: "currentColor" }, 900).look(cell);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    Object.entries({ width: 26, height: 10, "aria-hidden": "true" }).forEach(([key, value]) => svg.setAttribute(key, value));
    Object.entries({ x1: 0, x2: 26, y1: 5, y2: 5, stroke: look.colour, "stroke-width": 3, "stroke-dasharray": dashes[look.dash] }).forEach(([key, value]) => line.setAttribute(key, value));
    svg.append(line);
    return svg;
  };
  const box = (kind, value) => {
    const [label, input, text] = ["label", "input", "span"].map((name) => document.createElement(name));
    Object.assign(input, { type: "checkbox", value: String(value), checked: chosen[kind].has(value) });
    text.textContent = named[kind](value);
    label.title = text.textContent;
    input.addEventListener("change", () => choose(kind, (set) => (input.checked ? set.add(value) : set.delete(value))));
    label.append(input, ...(kind === "arms" ? [sample(cells[value])] : []), text);
    return label;
  };
  const choose = (kind, change) => {
    change(chosen[kind]);
    tell();
    redraw();
    keep(); /* last: within the frame of another page the address may be out of reach */
  };
  const tell = () => {
    all("fieldset").forEach((set) => all("input", set).forEach((input) => { input.checked = chosen[set.dataset.filter].has(Number(input.value)); }));
    const shown = runs.filter((run) => chosen.arms.has(run.cell.number) && chosen.ranks.has(run.k) && chosen.seeds.has(run.s)).length;
    document.querySelector(".count").textContent = shown === runs.length ? `all ${shown} runs` : `${shown} of ${runs.length} runs`;
  };
  const fill = (set) => {
    const kind = set.dataset.filter;
    const boxes = document.createElement("div");
    if (every[kind].length > 14) boxes.className = "many";
    boxes.append(...every[kind].map((value) => box(kind, value)));
    ["all", "none"].forEach((word) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: word });
      button.setAttribute("aria-label", `${word} ${kind}`);
      button.addEventListener("click", () => choose(kind, (of) => { of.clear(); if (word === "all") every[kind].forEach((value) => of.add(value)); }));
      set.querySelector("legend").append(button);
    });
    set.append(boxes);
  };
  /* The address keeps what is off, by name, so that it outlives a page with more runs. */
  const keep = () => {
    const off = new URLSearchParams();
    Object.keys(every).forEach((kind) => every[kind].filter((value) => !chosen[kind].has(value)).forEach((value) => off.append(`no-${kind}`, named[kind](value))));
    history.replaceState(null, "", String(off) ? `#${off}` : location.pathname + location.search);
  };
  const recall = () => {
    const off = new URLSearchParams(location.hash.slice(1));
    Object.keys(every).forEach((kind) => {
      const names = new Set(off.getAll(`no-${kind}`));
      every[kind].forEach((value) => (names.has(named[kind](value)) ? chosen[kind].delete(value) : chosen[kind].add(value)));
    });
  };

  /* Downloads --------------------------------------------------------------------------------------------------- */

  const save = (text, name, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  /* A spreadsheet takes text that begins with one of these signs for a formula. */
  const field = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  const csv = (records) => {
    const columns = [...new Set(records.flatMap(Object.keys))];
    return [columns, ...records.map((record) => columns.map((column) => record[column]))].map((row) => `${row.map(field).join(",")}\r\n`).join("");
  };
  const download = (figure, format) => {
    if (!drawn.has(figure) || stale.has(figure)) drawNow(figure);
    const drawing = drawn.get(figure);
    const name = `${data.sweeps[0].name.replace(/[^\w-]+/g, "_").slice(0, 60)}-${figure.dataset.figure}`;
    if (format === "csv") return save(csv(drawing.records), `${name}.csv`, "text/csv;charset=utf-8");
    const plot = figure.querySelector(".plot");
    return Plotly.downloadImage(plot, { format: "svg", filename: name, width: plot.clientWidth, height: drawing.layout.height });
  };

  /* Light and dark, print, contents ----------------------------------------------------------------------------- */

  const button = document.querySelector(".theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : darkly.matches);
  const nameTheme = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const paint = (is) => {
    if (printing === is) return;
    printing = is;
    if (is) {
      opened = all("main details:not(.runs):not([open])");
      opened.forEach((part) => { part.open = true; });
    } else {
      opened.forEach((part) => { part.open = false; });
    }
    drawAll();
  };
  const contents = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    all("nav a").forEach((link) => (link.hash === `#${entry.target.id}` ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  }), { rootMargin: "-20% 0px -70% 0px" });
  const sight = new IntersectionObserver((entries) => {
    entries.forEach((entry) => (entry.isIntersecting ? near.add(entry.target) : near.delete(entry.target)));
    wait();
  }, { rootMargin: "400px 0px" });

  const measures = () => {
    const fills = { metric: runs.map((run) => run.m), closing: runs.flatMap((run) => (run.t ? Object.keys(run.t) : [])) };
    Object.entries(fills).forEach(([name, values]) => {
      const select = document.querySelector(`#figure-${name} select[data-option="measure"]`);
      const names = [...new Set([...data.sweeps.map((sweep) => sweep.metric).filter((metric) => values.includes(metric)), ...values])].filter(Boolean);
      select.append(...names.map((value) => new Option(value, value)));
      select.parentElement.hidden = names.length < 2;
    });
    if (!runs.some((run) => run.p === "closing")) all('select[data-option="runs"]').forEach((select) => { select.value = "tuning"; });
  };

  recall();
  measures();
  all("fieldset").forEach(fill);
  document.querySelector('fieldset[data-filter="ranks"]').hidden = every.ranks.length < 2;
  tell();
  nameTheme();
  const filters = document.querySelector(".filters");
  filters.open = !matchMedia("(max-width: 960px)").matches;
  [button, filters, ...all(".tools")].forEach((part) => { part.hidden = false; });
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); redraw(); });
  darkly.addEventListener("change", () => { nameTheme(); redraw(); });
  all("select").forEach((select) => select.addEventListener("change", () => draw(select.closest("figure"))));
  all("button[data-save]").forEach((each) => each.addEventListener("click", () => download(each.closest("figure"), each.dataset.save)));
  all("nav a, a[href='#provenance'], a.skip").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault(); /* the address keeps the filters */
    const target = document.querySelector(link.hash);
    target.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  }));
  window.addEventListener("hashchange", () => { recall(); tell(); redraw(); });
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
  matchMedia("print").addEventListener("change", (event) => paint(event.matches));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (printing || window.innerWidth === width) return;
    width = window.innerWidth;
    redraw();
  });
  all("section").forEach((section) => contents.observe(section));
  all("figure[data-figure]").forEach((figure) => sight.observe(figure));
})();
