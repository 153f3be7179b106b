"use strict";
const root = document.documentElement;
root.dataset.errors = "0";
window.addEventListener("error", () => { root.dataset.errors = String(Number(root.dataset.errors) + 1); });

const { plan, timeline } = JSON.parse(document.getElementById("data").textContent);
const place = (id) => document.getElementById(id);
const gib = 1024 ** 3;
const terms = { matmul: "#4878a8", attention: "#7ba6cf", memory_bound: "#a3c58b", recompute: "#6d9a5b", tp_comm: "#e0a458", cp_comm: "#e8c27a",
  host: "#a89bc4", pp_bubble: "#c9ccd1", pp_comm: "#d98b4a", dp_comm: "#c4623f", optimizer: "#7d6aa8", offload: "#8a6d5a",
  step: "#8d959e", accumulate: "#a3c58b", forward: "#4878a8", backward: "#6d9a5b" };
const colour = (name) => terms[name] || "#9aa4ae";

function make(name, attributes = {}, text) {
  const svg = ["svg", "g", "rect", "circle", "line", "text", "title"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function chart(width, height) {
  return make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
}
function hint(node, text) { node.append(make("title", {}, text)); return node; }
const seconds = (value) => value >= 1 ? `${value.toFixed(3)} s` : `${(value * 1e3).toFixed(2)} ms`;

/** A cell that shows a figure and carries it as it stands in the document. */
function figure(candidate, key, value, shown) {
  const cell = make("td", { class: "number", "data-plan": candidate.name, "data-key": key }, value == null ? "" : shown(value));
  if (value != null) cell.dataset.value = String(value);
  return cell;
}

function summary() {
  const asked = plan.inputs;
  place("summary").textContent = `${asked.devices} × ${asked.device}, ${asked.devices_per_node} a node; a step of `
    + `${asked.global_batch} × ${asked.seq_len} tokens; ${plan.counts.evaluated} plans looked at, ${plan.counts.left_out} left out by a `
    + `bound, ${plan.counts.simulated} simulated${plan.complete ? "" : "; the search was stopped"}.`;
  for (const warning of plan.warnings) place("warnings").append(make("li", {}, warning));
}

function table() {
  const head = make("tr");
  for (const name of ["plan", "", "step", "tokens/s", "MFU", "memory", "bound by", "why not, and what would fit"])
    head.append(make("th", {}, name));
  const body = make("tbody");
  for (const one of plan.candidates) {
    const row = make("tr", { class: one.rejected_by ? "rejected" : "" });
    row.dataset.name = one.name;
    const change = one.smallest_change ? `; fits with ${one.smallest_change}` : "";
    const chosen = one.name === plan.chosen ? " (chosen)" : "";
    row.append(make("td", {}, one.name + chosen), make("td", {}, one.baseline || ""),
      figure(one, "step_time_s", one.step_time_s, (value) => seconds(value) + (one.error_bar ? ` ± ${one.error_bar.percent.toFixed(0)} %` : "")),
      figure(one, "tokens_per_s", one.tokens_per_s, (value) => Math.round(value).toLocaleString("en")),
      figure(one, "mfu", one.mfu, (value) => `${(value * 100).toFixed(1)} %`),
      figure(one, "memory_total_bytes", one.memory_total_bytes, (value) => `${(value / gib).toFixed(1)} GiB`),
      make("td", {}, one.bound_by || ""), make("td", {}, one.rejected_by ? one.rejected_by + change : ""));
    row.addEventListener("click", () => { choose(one.name); });
    body.append(row);
  }
  place("plans").append(make("thead"), body);
  place("plans").firstChild.append(head);
}

function scatter() {
  const all = plan.candidates.filter((one) => one.step_time_s != null && one.memory_total_bytes > 0);
  if (!all.length) return;
  const [width, height, left, bottom] = [880, 320, 60, 36];
  const svg = chart(width, height);
  const capacity = Math.max(...all.map((one) => one.memory_capacity_bytes));
  const most = Math.max(capacity, ...all.filter((one) => !one.rejected_by).map((one) => one.memory_total_bytes)) * 1.15;
  const longest = Math.max(...all.map((one) => one.step_time_s)) * 1.05;
  const x = (bytes) => left + Math.min(bytes, most) / most * (width - left - 20);
  const y = (time) => height - bottom - time / longest * (height - bottom - 20);
  svg.append(make("line", { class: "axis", x1: left, y1: y(0), x2: width, y2: y(0) }),
    make("line", { class: "axis", x1: left, y1: 0, x2: left, y2: y(0) }),
    make("line", { class: "axis", x1: x(capacity), y1: 0, x2: x(capacity), y2: y(0), "stroke-dasharray": "4 4" }),
    make("text", { class: "soft", x: x(capacity) - 4, y: 14, "text-anchor": "end" }, "capacity of a device"),
    make("text", { class: "soft", x: width - 20, y: height - 8, "text-anchor": "end" }, `memory, up to ${(most / gib).toFixed(0)} GiB`),
    make("text", { class: "soft", x: 4, y: 14 }, `${longest.toFixed(1)} s`));
  for (const one of all) {
    const over = one.memory_total_bytes > most;
    const dot = make("circle", { cx: x(one.memory_total_bytes), cy: y(one.step_time_s), r: one.baseline ? 7 : 5, "fill-opacity": 0.75,
      fill: one.rejected_by ? "var(--bad)" : one.name === plan.chosen ? "var(--good)" : "var(--a)" });
    svg.append(hint(dot, `${one.name}: ${seconds(one.step_time_s)}, ${(one.memory_total_bytes / gib).toFixed(1)} GiB${over ? " (off the chart)" : ""}`));
  }
  place("scatter").append(svg);
}

function pickers() {
  for (const id of ["first", "other"]) {
    for (const one of plan.candidates) if (one.step_time_s != null) place(id).append(make("option", { value: one.name }, one.name));
    place(id).addEventListener("change", compare);
  }
  const priced = plan.candidates.filter((one) => one.step_time_s != null);
  const start = plan.chosen || (priced[0] && priced[0].name);
  const second = priced.find((one) => one.name !== start && !one.rejected_by) || priced.find((one) => one.name !== start);
  if (start) place("first").value = start;
  if (second) place("other").value = second.name;
  compare();
}
let turn = 0;
function choose(name) {
  const wanted = place(["first", "other"][turn++ % 2]);
  if ([...wanted.options].some((option) => option.value === name)) { wanted.value = name; compare(); }
}

function compare() {
  const find = (id) => plan.candidates.find((one) => one.name === place(id).value);
  const [first, other] = [find("first"), find("other")];
  const target = place("terms");
  target.replaceChildren();
  for (const row of document.querySelectorAll("#plans tbody tr"))
    row.className = row.dataset.name === (first && first.name) ? "first" : row.dataset.name === (other && other.name) ? "other"
      : plan.candidates.find((one) => one.name === row.dataset.name).rejected_by ? "rejected" : "";
  if (!first || !other) return;
  const names = [...new Set([...Object.keys(first.terms_s), ...Object.keys(other.terms_s)])]
    .map((name) => ({ name, first: first.terms_s[name] || 0, other: other.terms_s[name] || 0 }))
    .filter((term) => term.first > 0 || term.other > 0).sort((a, b) => Math.abs(b.other - b.first) - Math.abs(a.other - a.first));
  const [width, each, left, right] = [960, 34, 120, 290];
  const svg = chart(width, names.length * each + 10);
  const most = Math.max(...names.map((term) => Math.max(term.first, term.other)));
  const long = (value) => value / most * (width - left - right);
  names.forEach((term, index) => {
    const top = index * each + 4;
    const more = term.other - term.first;
    svg.append(make("text", { x: left - 8, y: top + 18, "text-anchor": "end" }, term.name),
      make("rect", { x: left, y: top, width: long(term.first), height: 12, fill: "var(--a)", "data-term": term.name, "data-value": term.first }),
      make("rect", { x: left, y: top + 13, width: long(term.other), height: 12, fill: "var(--b)" }),
      make("text", { x: width - right + 8, y: top + 18 }, `${seconds(term.first)} → ${seconds(term.other)} (${more < 0 ? "−" : "+"}${seconds(Math.abs(more))})`));
  });
  const whole = (other.step_time_s / first.step_time_s - 1) * 100;
  target.append(make("p", {}, `${first.name} takes ${seconds(first.step_time_s)}, ${other.name} ${seconds(other.step_time_s)} (${whole.toFixed(1)} %)`
    + `${other.rejected_by ? `, but ${other.rejected_by}` : ""}.`), svg);
}

function steps() {
  if (!timeline) { place("timeline-note").textContent = "No time line goes with this document."; return; }
  const once = Object.entries(timeline.once_s);
  const whole = timeline.passes_s + once.reduce((sum, [, value]) => sum + value, 0);
  const shown = timeline.shown < timeline.micro_batches ? `the first ${timeline.shown} of ` : "";
  place("timeline-note").textContent = `${timeline.plan}: ${shown}${timeline.micro_batches} micro-batches; blue forward, green backward, empty where `
    + `a stage waits; behind them what stands once a step.`;
  const [width, each, left] = [1080, Math.max(14, Math.min(30, 480 / timeline.stages.length)), 130];
  const svg = chart(width, timeline.stages.length * each + 24);
  svg.style.maxWidth = "none";
  const x = (time) => left + time / whole * (width - left - 10);
  for (const stage of timeline.stages)
    svg.append(make("text", { class: "soft", x: left - 6, y: stage.stage * each + each * 0.7, "text-anchor": "end" },
      `stage ${stage.stage}: ${(stage.idle * 100).toFixed(0)} % idle`));
  const bar = (row, from, to, fill, text) => svg.append(hint(make("rect", { x: x(from), y: row * each + 1, fill, height: each - 2,
    width: Math.max(0.3, x(to) - x(from) - 0.4) }), `${text}: ${seconds(to - from)}`));
  for (const pass of timeline.passes)
    bar(pass.rank, pass.start_s, pass.end_s, colour(pass.backward ? "backward" : "forward"),
      `${pass.backward ? "backward" : "forward"} of micro-batch ${pass.micro_batch} on stage ${pass.stage}`);
  let from = timeline.passes_s;
  for (const [name, value] of once) {
    for (const stage of timeline.stages) bar(stage.stage, from, from + value, colour(name), name);
    from += value;
  }
  svg.append(make("text", { class: "soft", x: width - 10, y: timeline.stages.length * each + 18, "text-anchor": "end" }, seconds(whole)));
  svg.dataset.passes = String(timeline.passes.length);
  place("timeline").append(svg);
}

function memory() {
  const chosen = plan.candidates.find((one) => one.name === plan.chosen) || plan.candidates.find((one) => one.memory_total_bytes > 0);
  if (!chosen) return;
  const rows = timeline ? timeline.stages.map((stage) => [`stage ${stage.stage}`, stage.memory_bytes]) : [[chosen.name, chosen.memory_bytes]];
  const palette = ["#4878a8", "#7ba6cf", "#a3c58b", "#6d9a5b", "#e0a458", "#8d959e", "#c9ccd1", "#a89bc4"];
  const classes = [...new Set(rows.flatMap(([, held]) => Object.keys(held)))];
  const [width, each, left] = [880, 22, 90];
  const svg = chart(width, rows.length * each + 60);
  const capacity = chosen.memory_capacity_bytes;
  const most = Math.max(capacity, ...rows.map(([, held]) => Object.values(held).reduce((a, b) => a + b, 0))) * 1.02;
  const x = (bytes) => left + bytes / most * (width - left - 10);
  rows.forEach(([name, held], row) => {
    svg.append(make("text", { class: "soft", x: left - 6, y: row * each + 15, "text-anchor": "end" }, name));
    let from = 0;
    for (const [kind, bytes] of Object.entries(held)) {
      const part = make("rect", { x: x(from), y: row * each + 2, width: Math.max(0, x(from + bytes) - x(from)), height: each - 4,
        fill: palette[classes.indexOf(kind) % palette.length] });
      svg.append(hint(part, `${kind}: ${(bytes / gib).toFixed(2)} GiB`));
      from += bytes;
    }
  });
  const bottom = rows.length * each;
  svg.append(make("line", { stroke: "var(--bad)", x1: x(capacity), x2: x(capacity), y1: 0, y2: bottom }),
    make("text", { class: "soft", x: x(capacity) - 4, y: bottom + 14, "text-anchor": "end" }, `${(capacity / gib).toFixed(2)} GiB`));
  classes.forEach((kind, index) => {
    const at = left + index * 108;
    svg.append(make("rect", { x: at, y: bottom + 30, width: 12, height: 12, fill: palette[index % palette.length] }),
      make("text", { x: at + 16, y: bottom + 41 }, kind));
  });
  place("memory").append(svg);
}

function assumptions() {
  const head = make("tr");
  for (const name of ["assumption", "value", "unit", "source"]) head.append(make("th", {}, name));
  const rows = plan.assumptions.map((one) => {
    const row = make("tr");
    row.append(make("td", {}, one.name), make("td", { class: "number" }, String(one.value)), make("td", {}, one.unit), make("td", {}, one.source));
    return row;
  });
  place("assumptions").append(make("thead"), ...rows);
  place("assumptions").firstChild.append(head);
}

summary();
table();
scatter();
pickers();
steps();
memory();
assumptions();
root.dataset.ready = "1";
