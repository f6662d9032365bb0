// What the page does: draws its figures, lets one hide series, and changes between light and dark.
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const kept = { // what the browser remembers, where it may
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); } catch { /* it may not */ } },
};

// --- figures -------------------------------------------------------------------------------------

const specifications = read("figures"); // by figure: one of Vega-Lite for each panel
const views = new Map(); // by figure: Vega's views, once they are drawn
const signals = { chosen: null }; // of all figures
const waiting = new Set(Object.keys(specifications));

async function draw(name) {
  if (!waiting.delete(name)) return;
  const places = document.getElementById(name).querySelectorAll(".panel");
  const options = { mode: "vega-lite", actions: false, renderer: "svg", tooltip: { theme: "page", disableDefaultStyle: true } };
  const drawn = await Promise.all(specifications[name].map((spec, i) => vegaEmbed(places[i], spec, options)));
  views.set(name, drawn.map((one) => one.view));
  for (const { view } of drawn) view.addEventListener("click", (_, item) => chooseLike(item?.datum));
  set(name, "chosen", signals.chosen);
}

function set(name, signal, value) {
  for (const view of views.get(name) ?? []) view.signal(signal, value).runAsync();
}

function setEverywhere(signal, value) {
  signals[signal] = value;
  for (const name of views.keys()) set(name, signal, value);
}

// Those in sight at once, the others when there is time: nothing is left to be drawn when the page is printed.
const sight = new IntersectionObserver((seen) => {
  for (const one of seen) if (one.isIntersecting) { sight.unobserve(one.target); draw(one.target.id); }
}, { rootMargin: "300px" });
for (const name of waiting) sight.observe(document.getElementById(name));
const later = window.requestIdleCallback ?? ((callback) => setTimeout(callback, 50));
later(async function drawNext() {
  const [name] = waiting;
  if (name === undefined) { document.documentElement.dataset.drawn = "all"; return; }
  await draw(name);
  later(drawNext);
});

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const figure = button.closest("figure");
    const off = figure.querySelectorAll(".legend button[aria-pressed=false]");
    set(figure.id, "hidden", Array.from(off, (one) => one.dataset.series));
  });
}

// --- light and dark ------------------------------------------------------------------------------

const themes = ["auto", "light", "dark"], theme = document.getElementById("theme");
function wear(name) {
  document.documentElement.dataset.theme = name;
  theme.textContent = { auto: "◐ as the system", light: "☀ light", dark: "☾ dark" }[name];
  theme.setAttribute("aria-label", `Colours: ${name}. Change`);
}
wear(themes.includes(kept.get("boomspec-theme")) ? kept.get("boomspec-theme") : "auto");
theme.hidden = false;
theme.addEventListener("click", () => {
  wear(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]);
  kept.set("boomspec-theme", document.documentElement.dataset.theme);
});

// --- one size ------------------------------------------------------------------------------------

const experiments = read("known"); // see runners/report/sizes.py
const pick = document.getElementById("pick"), pickExperiment = document.getElementById("pick-experiment");
const asked = { context: 4096, batch: 1 }; // of the KV cache
let place = { experiment: 0, size: 0 }, moved = false;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function bytes(count) {
  let power = 0;
  for (; count >= 1024 && power < 4; power++) count /= 1024;
  return count.toFixed(power ? Math.max(0, 3 - String(Math.floor(count)).length) : 0) + [" B", " KiB", " MiB", " GiB", " TiB"][power];
}

function cacheBytes(size) {
  return size.cache.reduce((sum, [each, span, layers]) => sum + each * layers * Math.min(asked.context, span ?? Infinity), 0) * asked.batch;
}

function layersOf(size) {
  const blocks = size.plan.map(([owner, index, span]) => {
    const whose = owner === "s" ? "student" : "teacher";
    const whole = span > 1 ? `, in place of ${span} of the teacher's` : "";
    return make("span", { class: whose, style: `flex-grow: ${span}`, title: `layer ${index} of the ${whose}${whole}` }, make("i", {}, String(index)));
  });
  const own = size.plan.filter(([owner]) => owner === "s").length;
  const many = (count, whose) => `${count} ${count === 1 ? "layer" : "layers"} of the ${whose}`;
  const says = [many(own, "student"), many(size.plan.length - own, "teacher")];
  return make("figure", { class: "layers" },
    make("div", { class: "blocks" + (blocks.length > 30 ? " narrow" : blocks.length > 12 ? " many" : ""), role: "img", "aria-label": says.join(", ") }, ...blocks),
    make("figcaption", {}, make("b", { class: "student" }), ` ${says[0]}  `, make("b", { class: "teacher" }), ` ${says[1]}`));
}

function fact(name, value, more) {
  return make("div", { class: "fact" }, make("span", { class: "name" }, name), make("span", { class: "value" }, value), more ? make("span", { class: "more" }, more) : null);
}

function memory(size) {
  const total = make("span", { class: "value" }), parts = make("span", { class: "more" });
  const show = () => {
    const cache = cacheBytes(size);
    total.textContent = bytes(size.bytes + cache);
    parts.textContent = `${bytes(size.bytes)} of weights and ${bytes(cache)} of KV cache`;
  };
  const field = (name, label) => {
    const input = make("input", { type: "number", min: 1, max: 1e9, step: 1, value: asked[name], id: `pick-${name}` });
    input.addEventListener("input", () => {
      if (input.validity.valid && input.value) { asked[name] = Number(input.value); show(); remember(); }
    });
    return make("label", {}, `${label} `, input);
  };
  show();
  return make("div", { class: "fact wider" }, make("span", { class: "name" }, "memory"), total, parts,
    make("span", { class: "controls inputs" }, field("context", "context"), field("batch", "batch")));
}

function numbers(values) {
  return values.map((one) => {
    const line = [make("span", { class: "name" }, `${one.name} ${one.arrow}`), make("span", { class: "value" }, one.text, make("span", { class: "error" }, one.error ? ` ${one.error}` : ""))];
    if (one.at === undefined) return make("div", { class: "measure" }, ...line);
    const share = Math.round(100 * one.at), shown = Math.min(Math.max(one.at, -0.06), 1.06);
    const where = share < 0 ? "beyond the student" : share > 100 ? "beyond the teacher" : `${share} % of the way from student to teacher`;
    const track = make("span", { class: "track", title: where, role: "img", "aria-label": where },
      make("span", { class: "low" }, one.ends[0]), make("span", { class: "rail" }, make("span", { class: "at", style: `left: ${100 * shown}%` })), make("span", { class: "high" }, one.ends[1]));
    return make("div", { class: "measure" }, ...line, track);
  });
}

function command(text) {
  const button = make("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // not allowed: the text is selected, so that a key copies it
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return make("div", { class: "command" }, make("code", {}, text), button);
}

function folded(title, open, ...inside) {
  return make("details", open ? { open: "" } : {}, make("summary", {}, title), make("div", { class: "inside" }, ...inside));
}

function show() {
  const { sizes } = experiments[place.experiment], size = sizes[place.size];
  const where = document.getElementById("size");
  pick.max = sizes.length - 1;
  pick.value = place.size;
  pick.setAttribute("aria-valuetext", `${size.name}, ${size.parametersText} parameters`);
  document.getElementById("pick-name").textContent = `${size.name}${size.kind === "interpolated" ? "" : `, the ${size.kind}`}`;
  document.getElementById("pick-low").textContent = sizes[0].name;
  document.getElementById("pick-high").textContent = sizes.at(-1).name;
  const facts = make("div", { class: "facts" },
    fact("parameters", size.parametersText, `${(100 * size.share).toFixed(0)} % of the teacher's`),
    fact("weights", size.bytesText),
    size.cache.length ? memory(size) : null,
    ...(size.speed ?? []).map(([name, value, arrow]) => fact(`${name} ${arrow}`, value)));
  const main = size.values.filter((one) => one.main), rest = size.values.filter((one) => !one.main);
  const texts = (size.texts ?? []).map((one, i) => folded(one.prompt.length > 110 ? `…${one.prompt.slice(-110)}` : one.prompt, i === 0, make("p", { class: "text-of" }, one.text + (one.ended ? "" : " …"))));
  where.replaceChildren(...[
    size.plan.length ? layersOf(size) : null,
    facts,
    size.values.length ? make("div", { class: "measures" }, ...numbers(main)) : make("p", { class: "question" }, "This size has not been measured: the spec does not list it."),
    rest.length ? folded(`${rest.length} more ${rest.length > 1 ? "numbers" : "number"}`, false, make("div", { class: "measures" }, ...numbers(rest))) : null,
    texts.length ? make("h3", {}, "What it writes") : null,
    ...texts,
    size.export ? make("h3", {}, "To have it as a model") : null,
    size.export ? command(size.export) : null,
  ].filter(Boolean));
  if (moved) setEverywhere("chosen", size.parameters);
}

function remember() {
  const { label, sizes } = experiments[place.experiment];
  const state = new URLSearchParams({ size: sizes[place.size].name.replaceAll(" ", "-") });
  if (label) state.set("experiment", label);
  if (asked.context !== 4096) state.set("context", asked.context);
  if (asked.batch !== 1) state.set("batch", asked.batch);
  history.replaceState(null, "", `#${state}`);
}

function choose(change) {
  const { sizes } = experiments[change.experiment ?? place.experiment];
  const before = experiments[place.experiment].sizes[place.size].parameters;
  if (change.size === undefined) change.size = nearest(sizes, before); // the same size of another experiment
  place = { ...place, ...change };
  moved = true;
  show();
  remember();
}

function chooseLike(mark) { // a size where one clicks on its mark
  if (!pick || mark?.parameters === undefined) return;
  const experiment = experiments.findIndex((one) => one.label === mark.series);
  const at = experiment < 0 ? place.experiment : experiment;
  const size = experiments[at].sizes.findIndex((one) => one.parametersText === mark.parameters);
  if (size < 0) return;
  choose({ experiment: at, size });
  if (pickExperiment) pickExperiment.selectedIndex = at;
}

function nearest(sizes, parameters) {
  const far = sizes.map((one) => Math.abs(one.parameters - parameters));
  return far.indexOf(Math.min(...far));
}

function restore() { // what the address says
  const state = new URLSearchParams(location.hash.slice(1));
  if (!state.has("size")) return false;
  for (const name of ["context", "batch"]) if (Number(state.get(name)) >= 1) asked[name] = Math.floor(Number(state.get(name)));
  const experiment = Math.max(0, experiments.findIndex((one) => one.label === (state.get("experiment") ?? one.label)));
  const size = experiments[experiment].sizes.findIndex((one) => one.name.replaceAll(" ", "-") === state.get("size"));
  if (size < 0) return false;
  place = { experiment, size };
  moved = true;
  return true;
}

if (pick) {
  const all = experiments[0].sizes.map((_, index) => index);
  const measured = all.filter((index) => experiments[0].sizes[index].values.length);
  const offered = measured.length > 2 ? measured : all; // more than student and teacher
  place.size = offered[Math.floor(offered.length / 2)];
  restore();
  show();
  if (pickExperiment) {
    pickExperiment.selectedIndex = place.experiment;
    pickExperiment.addEventListener("change", () => choose({ experiment: pickExperiment.selectedIndex }));
  }
  pick.addEventListener("input", () => choose({ size: Number(pick.value) }));
  addEventListener("hashchange", () => {
    if (restore()) { show(); if (pickExperiment) pickExperiment.selectedIndex = place.experiment; }
  });
}
