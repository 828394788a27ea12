"use strict";
// Budget, figures and tools of the tables. All words come from the page's data, as text.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function made(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // no permission, or not a secure page
    const area = made("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}

// Numbers with the suffixes of the command line.
const ENDINGS = [["G", 1e9], ["M", 1e6], ["K", 1e3], ["", 1]];
const FACTORS = { "": 1, K: 1e3, M: 1e6, G: 1e9, B: 1e9, T: 1e12 };

function parsed(text) {
  const match = /^\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([KMGBT]?)\s*$/i.exec(text.replaceAll(",", ""));
  return match ? Number(match[1]) * FACTORS[match[2].toUpperCase()] : NaN;
}

// A bound that the value keeps, of the given digits: an upper bound is rounded up, a lower bound down.
function rounded(value, least, digits) {
  const [ending, factor] = ENDINGS.find(([, size]) => value >= (size === 1 ? 0 : size * (size === 1e3 ? 10 : 1)));
  const scaled = value / factor;
  const unit = 10 ** (Math.floor(Math.log10(scaled || 1)) - digits + 1);
  const result = least ? Math.floor(scaled / unit + 1e-9) * unit : Math.ceil(scaled / unit - 1e-9) * unit;
  return String(Number(result.toPrecision(digits))) + ending;
}

// The shortest bound that admits no other stop than those that the value admits.
function bound(value, { least, values }) {
  for (let digits = 4; digits < 16; digits += 1) {
    const text = rounded(value, least, digits), limit = parsed(text);
    const [low, high] = least ? [limit, value] : [value, limit];
    if (low <= high && !values.some((other) => other !== value && low <= other && other <= high)) return text;
  }
  return String(value);
}

// The selected student, the budget and the axes. Every control changes this state; `show` then draws all of it.
const state = { row: -1, limit: NaN, text: "", why: "", x: data.axes[0].name, y: data.axes[1].name, size: "" };
const [cost, slider, amount, command] = ["cost", "slider", "amount", "command"].map(byId);
let budgetOf;

function setCost(index) {
  const chosen = data.costs[index];
  const values = [...new Set(data.frontier.map((row) => row.values[chosen.name]))].sort((a, b) => a - b);
  budgetOf = { ...chosen, values };
  byId("bound-name").textContent = `${chosen.label}, at ${chosen.least ? "least" : "most"} (${chosen.unit})`;
  slider.max = values.length - 1;
}

// Like Run.pick: the row of the frontier within the bound that is best in the first objective; among equal rows, the first.
function within(limit) {
  let bestRow = -1;
  data.frontier.forEach(({ values }, row) => {
    if (budgetOf.least ? values[budgetOf.name] < limit : values[budgetOf.name] > limit) return;
    const [now, best] = [values[data.first.name], data.frontier[bestRow]?.values[data.first.name]];
    if (bestRow < 0 || (data.first.most ? now > best : now < best)) bestRow = row;
  });
  return bestRow;
}

function setBudget(text, why) {
  const { name, label, least, values } = budgetOf, limit = parsed(text);
  const sign = `${name} ${least ? "≥" : "≤"} ${text}`;
  if (!(limit > 0)) {
    Object.assign(state, { row: -1, limit: NaN, text,
      why: `“${text}” is not an amount; allowed: a number above 0 such as 300M, 1.5G or 8000000.` });
  } else {
    const row = within(limit);
    const end = least ? `highest ${label}: ${rounded(values.at(-1), true, 4)}` : `lowest ${label}: ${rounded(values[0], false, 4)}`;
    Object.assign(state, { row, limit, text,
      why: row < 0 ? `No student fits; the frontier's ${end}.` : why?.(sign) ?? `Best within ${sign}:` });
  }
  show();
}

function setStop(index) {
  setBudget(bound(budgetOf.values[index], budgetOf));
}

// Select a row of the frontier: its cost becomes the budget.
function choose(row) {
  setBudget(bound(data.frontier[row].values[budgetOf.name], budgetOf));
  if (state.row !== row) {
    const best = data.frontier[state.row].number;
    Object.assign(state, { row, why: `Selected: row ${data.frontier[row].number}. Row ${best} is better in the first objective within ${budgetOf.name} ${budgetOf.least ? "≥" : "≤"} ${state.text}.` });
    show();
  }
}

// A scored subnet off the frontier: the best student within its cost.
function chooseScored(values, words) {
  setBudget(rounded(values[budgetOf.name], budgetOf.least, 6), (sign) => `Best within ${sign}, the cost of the subnet that you selected (${words}):`);
}

function show() {
  const { limit, text, why, row } = state, { label, least, values } = budgetOf, student = data.frontier[row];
  if (amount.value !== text) amount.value = text;
  amount.setAttribute("aria-invalid", String(!(limit > 0)));
  const stop = least ? values.findIndex((value) => value >= limit) : values.findLastIndex((value) => value <= limit);
  if (limit > 0) slider.value = stop < 0 ? (least ? values.length - 1 : 0) : stop;
  slider.setAttribute("aria-valuetext", `${label} ${text}`);
  const [sizes, ...measured] = student?.words.split("\n") ?? [];
  byId("words").textContent = student ? [why, sizes, measured.join("; ")].join("\n") : why;
  command.hidden = !student?.command;
  command.querySelector("code").textContent = student?.command ?? "";
  for (const line of document.querySelectorAll("tr[data-row]")) {
    const chosen = Number(line.dataset.row) === row;
    line.classList.toggle("chosen", chosen);
    line.querySelector("button.pick")?.setAttribute("aria-pressed", String(chosen));
  }
  drawFrontier();
}

// Select a cost. It becomes the x axis, and the selected student stays.
function changeCost() {
  setCost(cost.selectedIndex);
  if (state.y !== budgetOf.name && data.axes.some(({ name }) => name === budgetOf.name)) setAxis("x", budgetOf.name);
  choose(state.row < 0 ? data.frontier.findIndex((row) => row.knee) : state.row);
}

// Two axes never show the same quantity.
function setAxis(axis, name) {
  const other = axis === "x" ? "y" : "x";
  if (state[other] === name) state[other] = state[axis];
  state[axis] = name;
  for (const key of ["x", "y"]) byId(`axis-${key}`).value = state[key];
}

if (data.costs.length) {
  data.costs.forEach(({ label, unit }) => cost.append(made("option", { textContent: label, title: unit })));
  cost.addEventListener("change", changeCost);
  slider.addEventListener("input", () => setStop(Number(slider.value)));
  amount.addEventListener("input", () => setBudget(amount.value));
  command.querySelector("button").addEventListener("click", (event) =>
    copy(command.querySelector("code").textContent, event.target));
  byId("budget").hidden = false;
}

// Figures. Colours are names in the data; they follow the scheme of the browser, and are light in print.
const scheme = matchMedia("(prefers-color-scheme: dark)");
let inPrint = false;

function painted(part, colours) {
  if (Array.isArray(part)) return part.map((item) => painted(item, colours));  // a copy, because a zoom writes into ranges
  if (part === null || typeof part !== "object") return part;
  return Object.fromEntries(Object.entries(part).map(([key, value]) =>
    [key, key.endsWith("color") && typeof value === "string" ? colours[value] ?? value : painted(value, colours)]));
}

const plotly = (async () => {
  const bytes = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = made("script", { src: URL.createObjectURL(new Blob([text], { type: "text/javascript" })) });
  await new Promise((resolve, reject) => {
    Object.assign(script, { onload: resolve, onerror: reject });
    document.head.append(script);
  });
  URL.revokeObjectURL(script.src);
  return globalThis.Plotly;
})();

async function draw(element, traces, layout) {
  const colours = data.colours[scheme.matches && !inPrint ? "dark" : "light"];
  const narrow = element.clientWidth < 480;
  const config = { ...data.config, toImageButtonOptions: { ...data.config.toImageButtonOptions, filename: element.dataset.chart } };
  const names = traces.filter((trace) => trace.showlegend !== false).length;
  const fitted = narrow  // the legend takes a line for each name
    ? { ...layout, height: layout.height + 12 * names, margin: { ...layout.margin, l: Math.min(layout.margin.l, 44) } } : layout;
  const { data: shown, layout: frame } = painted({ data: traces, layout: fitted }, colours);
  await (await plotly).react(element, shown, frame, config);
}

function frontierTraces() {
  const points = data.points.map(({ trace, values, sizes }) => ({
    ...trace, x: values[state.x], y: values[state.y],
    ...(state.size ? { marker: { ...trace.marker, color: sizes[state.size], coloraxis: "coloraxis", opacity: 0.9 }, showlegend: false } : {}),
  }));
  const student = data.frontier[state.row], [line, ring] = data.marks.map((trace) => ({ ...trace }));
  const ends = (name) => {
    const { axis } = data.axes.find((other) => other.name === name);
    return axis.type === "log" ? axis.range.map((end) => 10 ** end) : axis.range;
  };
  if (state.limit > 0 && budgetOf?.name === state.x) Object.assign(line, { x: [state.limit, state.limit], y: ends(state.y) });
  if (state.limit > 0 && budgetOf?.name === state.y) Object.assign(line, { x: ends(state.x), y: [state.limit, state.limit] });
  if (student) Object.assign(ring, { x: [student.values[state.x]], y: [student.values[state.y]] });
  return [...points, ...(state.size ? data.keys : []), ...data.overlays[`${state.x} ${state.y}`], line, ring];
}

const panel = document.querySelector('[data-chart="frontier"]');

async function drawFrontier() {
  const axis = (name) => data.axes.find((other) => other.name === name).axis;
  const size = data.sizes.find(({ name }) => name === state.size);
  const layout = { ...data.layout, xaxis: axis(state.x), yaxis: axis(state.y), uirevision: `${state.x} ${state.y}` };
  if (size) layout.coloraxis = size.axis;
  await draw(panel, frontierTraces(), layout);
}

function clicked({ points: [{ curveNumber, pointIndex }] }) {
  const part = data.points[curveNumber];
  if (!part) return;
  if (part.rows) choose(part.rows[pointIndex]);
  else {
    const values = Object.fromEntries(Object.entries(part.values).map(([name, column]) => [name, column[pointIndex]]));
    const words = new DOMParser().parseFromString(part.trace.hovertext[pointIndex].replaceAll("<br>", ", "), "text/html");
    chooseScored(values, words.body.textContent);
  }
}

// The arrow keys walk along the frontier, in the order of the x axis.
function walk(event) {
  const order = data.frontier.map((_, row) => row).sort((a, b) => data.frontier[a].values[state.x] - data.frontier[b].values[state.x]);
  const place = order.indexOf(state.row);
  const next = { ArrowRight: place + 1, ArrowUp: place + 1, ArrowLeft: place - 1, ArrowDown: place - 1, Home: 0, End: order.length - 1 }[event.key];
  if (next === undefined || event.target !== panel) return;
  event.preventDefault();
  choose(order[Math.min(Math.max(next, 0), order.length - 1)]);
}

async function drawAll() {
  await drawFrontier();
  for (const element of document.querySelectorAll("[data-chart]")) {
    if (element !== panel) await draw(element, data.charts[element.dataset.chart].data, data.charts[element.dataset.chart].layout);
  }
}

function addChooser(id, entries, chosen, change) {
  const select = byId(id);
  entries.forEach(({ name, label }) => select.append(made("option", { value: name, textContent: label, selected: name === chosen })));
  select.addEventListener("change", () => { change(select.value); drawFrontier(); });
}

addChooser("axis-x", data.axes, state.x, (name) => setAxis("x", name));
addChooser("axis-y", data.axes, state.y, (name) => setAxis("y", name));
addChooser("colour", [{ name: "", label: data.series }, ...data.sizes], "", (name) => { state.size = name; });

plotly.then(async (library) => {
  byId("axes").hidden = false;
  for (const button of document.querySelectorAll("button[data-format]")) {
    button.addEventListener("click", () => library.downloadImage(panel, { format: button.dataset.format, filename: "frontier", scale: 2 }));
  }
  await drawAll();
  panel.on("plotly_click", clicked);
  panel.addEventListener("keydown", walk);
  panel.tabIndex = 0;
  scheme.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { inPrint = true; drawAll(); });
  addEventListener("afterprint", () => { inPrint = false; drawAll(); });
  document.documentElement.dataset.drawn = "true";
}).catch((error) => {  // an old browser: the pictures, as without scripts
  console.warn(String(error));
  for (const picture of document.querySelectorAll("[data-chart] noscript")) picture.outerHTML = picture.textContent;
});

// Tables: sort, filter, copy as CSV.
const valueOf = (cell) => cell.dataset.v ?? cell.textContent;
const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  if (a === "" || b === "") return (a === "") - (b === "");
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

for (const sheet of document.querySelectorAll(".sheet")) {
  const body = sheet.querySelector("tbody"), heads = [...sheet.querySelectorAll("th")];
  const names = heads.map((head) => head.textContent);
  heads.forEach((head, column) => {
    const button = made("button", { type: "button", textContent: names[column] });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => compare(valueOf(a.cells[column]), valueOf(b.cells[column])));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
  const label = sheet.querySelector(".scroll").getAttribute("aria-label");
  const filter = made("input", { type: "search", size: 18 });
  const count = made("span", {});
  count.setAttribute("role", "status");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    let left = 0;
    for (const row of body.rows) {
      const text = [...row.cells].map((cell, i) => `${names[i]}=${cell.textContent}`).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    count.textContent = `${left} of ${body.rows.length} rows`;
  });
  const button = made("button", { type: "button", textContent: "Copy as CSV" });
  button.setAttribute("aria-label", `Copy ${label} as CSV`);
  button.addEventListener("click", () => {
    const rows = [...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map(valueOf));
    copy([names, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n", button);
  });
  const tools = sheet.querySelector(".tools");
  tools.append(made("label", {}, `Filter ${label} `, filter), button, count);
  tools.hidden = false;
}

// A row of the frontier is selected by a click anywhere, or by the button of its number.
for (const line of data.costs.length ? document.querySelectorAll("tr[data-row]") : []) {
  const number = line.cells[0], button = made("button", { type: "button", className: "pick", textContent: number.textContent });
  button.setAttribute("aria-label", `Select row ${number.textContent}`);
  number.replaceChildren(button);
  line.addEventListener("click", () => choose(Number(line.dataset.row)));
}
if (data.costs.length) changeCost();
