// What the engine does, read once a second while anybody can see it.

import { get } from "./api.js";
import { count, el, fixed, svg } from "./dom.js";

const EVERY_MS = 1000;
const KEPT = 60;

const GAUGES = [
  ["rate", "tokens/s", "tokens that branches came by, in a second"],
  ["rows", "rows/pass", "rows of the model's last passes: its batch"],
  ["running", "running", "requests at work"],
  ["waiting", "waiting", "requests that wait for a place"],
  ["pages", "KV pages", "pages of keys and values in use"],
  ["hits", "cache hits", "tokens that the tree held already, of all that branches came by"],
];

/** Keep the gauges in an element up to date. */
export function watch(host) {
  const values = new Map();
  const rates = Array(KEPT).fill(0);
  const line = svg("polyline", { points: "" });
  for (const [name, label, title] of GAUGES) {
    const value = el("dd", { text: "–" });
    values.set(name, value);
    host.append(el("dl", { title }, el("dt", { text: label }), value));
  }
  host.prepend(svg("svg", { class: "spark", viewBox: `0 0 ${KEPT} 20`, "aria-hidden": "true",
    preserveAspectRatio: "none" }, line));
  let before = null;
  const read = async () => {
    if (document.visibilityState !== "visible") {
      before = null;
      return;
    }
    let told;
    try {
      told = await get("/v1/engine");
    } catch {
      host.classList.add("lost");
      return;
    }
    host.classList.remove("lost");
    const sum = (field) => told.models.reduce((total, model) => total + model[field], 0);
    const now = {
      when: performance.now(), tokens: sum("tokens"), rows: sum("rows"), passes: sum("passes"),
    };
    const passes = before ? now.passes - before.passes : 0;
    const rate = before ? ((now.tokens - before.tokens) * 1000) / (now.when - before.when) : NaN;
    const shown = {
      rate: count(rate),
      rows: passes > 0 ? fixed((now.rows - before.rows) / passes, 1) : "–",
      running: count(told.running),
      waiting: count(told.waiting),
      pages: `${count(sum("used_pages"))} / ${count(sum("pages"))}`,
      hits: now.tokens ? `${fixed((100 * sum("cached_tokens")) / now.tokens, 0)}%` : "–",
    };
    for (const [name, value] of values) value.textContent = shown[name];
    rates.push(rate || 0);
    rates.shift();
    const most = Math.max(1, ...rates);
    line.setAttribute("points",
      rates.map((value, i) => `${i},${19 - (18 * value) / most}`).join(" "));
    before = now;
  };
  read();
  setInterval(read, EVERY_MS);
  document.addEventListener("visibilitychange", read);
}
