"use strict";
// Tooltips, budget, and tools of the tables. All words come from the page's data, as text.
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

// A bound of four digits that the value keeps: an upper bound is rounded up, a lower bound down.
function bound(value, least) {
  const [ending, factor] = ENDINGS.find(([, size]) => value >= (size === 1 ? 0 : size * (size === 1e3 ? 10 : 1)));
  const scaled = value / factor;
  const unit = 10 ** (Math.floor(Math.log10(scaled || 1)) - 3);
  const rounded = least ? Math.floor(scaled / unit + 1e-9) * unit : Math.ceil(scaled / unit - 1e-9) * unit;
  return String(Number(rounded.toPrecision(4))) + ending;
}

// Tooltip of the point under the pointer or in focus.
const tip = byId("tip");

function tell(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const left = Math.min(x + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = y + 16 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(4, left) + scrollX}px`;
  tip.style.top = `${(below ? y + 16 : y - tip.offsetHeight - 12) + scrollY}px`;
}

function scoredPoints(svg) {
  return [...svg.querySelectorAll("path.scored[data-first]")].flatMap((path) =>
    [...path.getAttribute("d").matchAll(/M(-?[\d.]+) (-?[\d.]+)/g)].map((match, i) =>
      ({ x: Number(match[1]), y: Number(match[2]), words: data.scored[Number(path.dataset.first) + i] })));
}

for (const svg of document.querySelectorAll("svg.frontier")) {
  const points = scoredPoints(svg);
  const best = [...svg.querySelectorAll(".best")];
  svg.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("[data-row], [data-tip]");
    if (mark) {
      tell(mark.dataset.tip ?? data.frontier[mark.dataset.row].words, event.clientX, event.clientY);
      return;
    }
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = null, distance = 8 ** 2;
    for (const point of points) {
      const square = (point.x - at.x) ** 2 + (point.y - at.y) ** 2;
      if (square < distance) [nearest, distance] = [point, square];
    }
    if (nearest) tell(nearest.words, event.clientX, event.clientY);
    else tip.hidden = true;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  best.forEach((mark, i) => {
    mark.addEventListener("focus", () => {
      const box = mark.getBoundingClientRect();
      tell(data.frontier[mark.dataset.row].words, box.right, box.bottom);
      best.forEach((other) => other.setAttribute("tabindex", other === mark ? "0" : "-1"));
    });
    mark.addEventListener("blur", () => { tip.hidden = true; });
    mark.addEventListener("click", () => choose(Number(mark.dataset.row), "Selected:"));
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) best[(i + step + best.length) % best.length].focus();
      else if (event.key === "Enter" || event.key === " ") choose(Number(mark.dataset.row), "Selected:");
      else if (event.key === "Escape") tip.hidden = true;
      else return;
      event.preventDefault();
    });
  });
}

for (const line of document.querySelectorAll("svg.parallel [data-row]")) {
  line.addEventListener("pointermove", (event) => tell(data.frontier[line.dataset.row].words, event.clientX, event.clientY));
  line.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// The student for a budget.
const [cost, slider, amount, command] = ["cost", "slider", "amount", "command"].map(byId);

function choose(row, why) {
  const student = data.frontier[row];
  document.querySelectorAll(".chosen").forEach((element) => element.classList.remove("chosen"));
  document.querySelectorAll(`[data-row="${row}"]`).forEach((element) => element.classList.add("chosen"));
  command.hidden = !student?.command;
  if (student) {
    const lines = student.words.split("\n");
    byId("words").textContent = [why, ...(student.command ? lines.slice(0, -1) : lines)].join("\n");
    command.querySelector("code").textContent = student.command ?? "";
  } else byId("words").textContent = why;
}

// Like Run.pick: the row of the frontier within the bound that is best in the first objective; among equal rows, the first.
function within(name, least, limit) {
  let bestRow = -1;
  data.frontier.forEach(({ values }, row) => {
    if (least ? values[name] < limit : values[name] > limit) return;
    const [now, best] = [values[data.first.name], data.frontier[bestRow]?.values[data.first.name]];
    if (bestRow < 0 || (data.first.most ? now > best : now < best)) bestRow = row;
  });
  return bestRow;
}

function chosenCost() {
  const selected = data.costs[cost.selectedIndex];
  const values = [...new Set(data.frontier.map((row) => row.values[selected.name]))].sort((a, b) => a - b);
  return { ...selected, values };
}

function showBest() {
  const { name, label, least, values } = chosenCost();
  const limit = parsed(amount.value);
  amount.setAttribute("aria-invalid", String(!(limit > 0)));
  if (!(limit > 0)) return choose(-1, `“${amount.value}” is not an amount; allowed: a number above 0 such as 300M, 1.5G or 8000000.`);
  const row = within(name, least, limit);
  slider.setAttribute("aria-valuetext", `${label} ${amount.value}`);
  const end = least ? `highest ${label}: ${bound(values.at(-1), true)}` : `lowest ${label}: ${bound(values[0], false)}`;
  choose(row, row < 0 ? `No student fits; the frontier's ${end}.`
    : `Best within ${name} ${least ? "≥" : "≤"} ${amount.value}:`);
}

function slide() {
  const { least, values } = chosenCost();
  amount.value = bound(values[slider.value], least);
  showBest();
}

if (data.costs.length) {
  data.costs.forEach(({ label, unit }) => cost.append(made("option", { textContent: label, title: unit })));
  const start = () => {
    const { name, label, unit, least, values } = chosenCost();
    byId("bound-name").textContent = `${label}, at ${least ? "least" : "most"} (${unit})`;
    slider.max = values.length - 1;
    slider.value = values.indexOf(data.frontier.find((row) => row.knee).values[name]);
    slide();
  };
  cost.addEventListener("change", start);
  slider.addEventListener("input", slide);
  amount.addEventListener("input", () => {
    const { values } = chosenCost(), limit = parsed(amount.value);
    slider.value = Math.max(0, values.findLastIndex((value) => value <= limit));
    showBest();
  });
  command.querySelector("button").addEventListener("click", (event) =>
    copy(command.querySelector("code").textContent, event.target));
  byId("budget").hidden = false;
  start();
}

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
