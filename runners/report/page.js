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
