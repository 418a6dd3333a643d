// The token tree as SVG: tokens from left to right, a lane for each branch.

import { brief, clean, count, el, fixed, set, shortId, svg } from "./dom.js";
import { layOut, scoreOf, tokensOf } from "./tree.js";

const REDRAW_MS = 90;
const PAD = { left: 26, right: 14, top: 14, bottom: 14 };
const LANE = { least: 2.2, most: 46 };
const LABELLED = 9; // lanes narrower than this have labels only where it matters
const WIDEST = 15;
const LETTER = { width: 7, height: 12 }; // of labels, about
const ZOOM = { least: 1, most: 12, step: 1.5 };

let views = 0;

export class TreeView {
  /** @param onSelect called with a branch, or null. */
  constructor(label, onSelect) {
    this.tree = null;
    this.selected = null;
    this.zoom = 1;
    this.everything = false;
    this.name = `tree-${views++}`;
    this.onSelect = onSelect;
    this.drawn = new Map(); // by branch id, its element and parts
    this.due = 0;
    this.canvas = svg("svg", { role: "presentation" });
    this.scroll = el("div", {
      role: "tree", tabindex: 0, "aria-label": label, class: "scroll",
      on: { keydown: (event) => this.#key(event) },
    }, this.canvas);
    this.empty = el("p", { class: "empty", text: "The tree grows here." });
    const tool = (text, title, act) =>
      el("button", { type: "button", class: "quiet", title, "aria-label": title, text, on: { click: act } });
    this.all = el("input", { type: "checkbox", on: {
      change: () => { this.everything = this.all.checked; this.draw(); },
    } });
    this.element = el("div", { class: "view" }, this.scroll, this.empty,
      el("div", { class: "legend" },
        el("span", { class: "scale", role: "img", "aria-label": "colour: score from 0 to 1" },
          el("i", { text: "0" }), el("b"), el("i", { text: "1" })),
        el("span", { text: "score", title: "a judge's rating; without one, the mean probability of a token" }),
        el("span", { class: "swatch wide", text: "wide: many tokens" }),
        el("span", { class: "swatch faded", text: "faded: pruned" }),
        el("span", { class: "swatch won", text: "leads to the answer" }),
        el("label", { class: "check", title: "also branches on which nothing was written" },
          this.all, " all branches"),
        el("span", { class: "tools" },
          tool("−", "Zoom out (−)", () => this.zoomTo(this.zoom / ZOOM.step)),
          tool("Fit", "Fit (0)", () => this.zoomTo(1)),
          tool("+", "Zoom in (+)", () => this.zoomTo(this.zoom * ZOOM.step)))));
    this.canvas.addEventListener("click", (event) => {
      const id = event.target.closest("[data-id]")?.dataset.id;
      if (id !== undefined && !this.dragged) this.select(id);
    });
    this.scroll.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.#dragging();
    new ResizeObserver(() => this.draw()).observe(this.scroll);
  }

  /** Show a tree, empty or not. */
  show(tree) {
    this.tree = tree;
    this.zoom = 1;
    this.selected = null;
    this.canvas.replaceChildren();
    this.drawn.clear();
    this.draw();
  }

  /** Draw soon: many changes are one drawing. */
  draw() {
    this.due ||= setTimeout(() => requestAnimationFrame(() => {
      this.due = 0;
      this.#draw();
      if (this.selected) this.onSelect(this.selected);
    }), REDRAW_MS);
  }

  select(id) {
    this.selected = this.tree?.branches.get(id) ?? null;
    this.#draw();
    this.#reveal();
    this.onSelect(this.selected);
  }

  zoomTo(zoom, around = null) {
    const before = this.zoom;
    this.zoom = Math.min(ZOOM.most, Math.max(ZOOM.least, zoom));
    const box = this.scroll;
    const at = around ?? { x: box.clientWidth / 2, y: box.clientHeight / 2 };
    const ratio = this.zoom / before;
    const [left, top] = [box.scrollLeft + at.x, box.scrollTop + at.y];
    this.#draw();
    box.scrollTo(left * ratio - at.x, top * ratio - at.y);
  }

  #draw() {
    const tree = this.tree;
    this.empty.hidden = Boolean(tree?.roots.length);
    if (!tree || !this.scroll.clientWidth) return;
    const size = layOut(tree, this.everything);
    const [width, height] = [this.scroll.clientWidth, this.scroll.clientHeight];
    const room = height - PAD.top - PAD.bottom;
    const lane = Math.min(LANE.most, Math.max(LANE.least, room / size.lanes)) * this.zoom;
    const wide = width * this.zoom;
    const labels = lane >= LABELLED || tree.outcome ? Math.min(110, width * 0.2) : 0;
    const inner = wide - PAD.left - PAD.right - labels;
    const gap = size.forks ? Math.min(26 * this.zoom, (inner * 0.45) / size.forks) : 0;
    // While it grows there is some room ahead, so that growing is seen and scales change seldom.
    const ahead = 2 ** (Math.ceil(2 * Math.log2(size.tokens + 8)) / 2);
    const tokens = (inner - gap * size.forks) / (tree.ended ? size.tokens : ahead);
    const tall = Math.max(height, size.lanes * lane + PAD.top + PAD.bottom);
    const top = PAD.top + Math.max(0, (tall - PAD.top - PAD.bottom - size.lanes * lane) / 2);
    set(this.canvas, "width", Math.floor(wide));
    set(this.canvas, "height", Math.floor(tall));
    const most = Math.max(...tree.roots.map((root) => root.flow), 1);
    const thickest = Math.min(WIDEST, Math.max(4, lane * 0.6, 18 - size.lanes * 0.1));
    const scale = {
      lane,
      x: (branch, position) => PAD.left + branch.forks * gap + (position - branch.base) * tokens,
      y: (branch) => top + (branch.lane + 0.5) * lane,
      stroke: (flow) => Math.max(1.3, thickest * Math.sqrt(flow / most)),
    };
    this.order = [...tree.branches.values()]
      .filter((branch) => branch.shown)
      .sort((a, b) => a.lane - b.lane || a.forks - b.forks);
    const shown = new Set();
    const [said, tips] = [[], []];
    for (const branch of this.order) {
      shown.add(branch.id);
      this.#drawBranch(branch, scale, said, tips);
    }
    this.#placeLabels(said, tips);
    for (const [id, parts] of this.drawn) {
      if (!shown.has(id)) {
        parts.group.remove();
        this.drawn.delete(id);
      }
    }
    if (this.selected) set(this.scroll, "aria-activedescendant", this.#idOf(this.selected));
    else this.scroll.removeAttribute("aria-activedescendant");
  }

  #idOf(branch) {
    return `${this.name}-${branch.id.replaceAll(".", "-")}`;
  }

  #parts(branch) {
    let parts = this.drawn.get(branch.id);
    if (!parts) {
      const [hit, halo] = [svg("path", { class: "hit" }), svg("path", { class: "halo" })];
      const [tip, label] = [svg("circle", { class: "tip" }), svg("text", { class: "label" })];
      const lines = svg("g");
      const group = svg("g", { role: "treeitem", id: this.#idOf(branch), "data-id": branch.id },
        halo, hit, lines, tip, label);
      parts = { group, hit, halo, lines, tip, label };
      this.drawn.set(branch.id, parts);
      this.canvas.append(group);
    }
    return parts;
  }

  #drawBranch(branch, scale, labels, tips) {
    const parts = this.#parts(branch);
    const y = scale.y(branch);
    const state = [
      branch.kept ? "kept" : !branch.open ? "pruned" : "",
      branch.growing ? "growing" : "",
      branch === this.selected ? "selected" : "",
      branch.parent ? "" : "root",
    ];
    set(parts.group, "class", `branch ${state.join(" ")}`);
    set(parts.group, "aria-level", branch.forks + 1);
    set(parts.group, "aria-selected", branch === this.selected);
    set(parts.group, "aria-label", this.#spoken(branch));

    // One line per step; the first begins with the bend that leaves the parent.
    const steps = branch.written;
    const begin = scale.x(branch, branch.origin);
    let bend = `M${begin - 12} ${y}H${begin}`;
    if (branch.parent) {
      const [x0, y0] = [scale.x(branch.parent, branch.origin), scale.y(branch.parent)];
      const middle = (x0 + begin) / 2;
      bend = `M${r(x0)} ${r(y0)}C${r(middle)} ${r(y0)} ${r(middle)} ${r(y)} ${r(begin)} ${r(y)}`;
    }
    const end = scale.x(branch, branch.end);
    const whole = `${bend}H${r(Math.max(begin, end))}`;
    const width = scale.stroke(branch.flow);
    set(parts.hit, "d", whole);
    set(parts.hit, "stroke-width", Math.max(10, width));
    set(parts.halo, "d", whole);
    set(parts.halo, "stroke-width", width + (branch === this.selected ? 7 : 5));
    const lines = parts.lines;
    while (lines.childElementCount > Math.max(1, steps.length)) lines.lastChild.remove();
    while (lines.childElementCount < Math.max(1, steps.length)) lines.append(svg("path"));
    let left = branch.flow;
    for (let i = 0; i < lines.childElementCount; i++) {
      const [step, line] = [steps[i], lines.children[i]];
      const from = step ? scale.x(branch, step.start) : begin;
      const to = step ? scale.x(branch, step.end) : begin;
      set(line, "d", `${i ? `M${r(from + 1)} ${r(y)}` : bend}H${r(Math.max(from + 1, to))}`);
      set(line, "stroke-width", r(scale.stroke(left)));
      set(line, "class", step ? `line ${shade(scoreOf(step))} ${step.kind}` : "line none");
      left -= step?.tokens ?? 0;
      for (const child of branch.children) {
        if (step && child.origin >= step.start && child.origin < step.end) left -= child.flow;
      }
    }

    const leaf = !branch.children.some((child) => child.shown);
    const marked = this.tree.outcome?.kept.includes(branch.id) ?? false;
    const large = Math.min(5, Math.max(3.5, scale.lane * 0.6));
    const tip = leaf || marked || branch.growing ? (marked ? large : Math.min(3, scale.lane / 3)) : 0;
    if (marked) tips.push({ x: Math.max(begin, end), y, room: large + 2 });
    set(parts.tip, "cx", r(Math.max(begin, end)));
    set(parts.tip, "cy", r(y));
    set(parts.tip, "r", r(tip));
    const said = (leaf || marked) && branch.answer !== null ? brief(branch.answer, 14) : "";
    const room = marked || scale.lane >= LABELLED || branch === this.selected;
    const rank = branch === this.selected ? 0 : marked ? 1 : 2;
    labels.push({ label: parts.label, said: room ? said : "", x: end + 10, y, rank });
  }

  /** Beside their tips, or a little to the right; where there is no room, without a label. */
  #placeLabels(labels, tips) {
    const placed = [];
    for (const one of labels.sort((a, b) => a.rank - b.rank)) {
      const wide = one.said.length * LETTER.width;
      const near = (y, room) => Math.abs(y - one.y) < room;
      let x = one.x;
      for (const tip of tips.filter((other) => near(other.y, other.room + LETTER.height / 2))
        .sort((a, b) => a.x - b.x)) {
        if (tip.x + tip.room > x && tip.x - tip.room < x + wide) x = tip.x + tip.room + 4;
      }
      const free = x < one.x + 30 && placed.every((other) => !near(other.y, LETTER.height)
        || other.x > x + wide || other.x + other.wide < x);
      one.label.textContent = free ? one.said : "";
      if (!free || !one.said) continue;
      placed.push({ x, y: one.y, wide });
      set(one.label, "x", r(x));
      set(one.label, "y", r(one.y));
    }
  }

  #spoken(branch) {
    const told = [`branch ${branch.id}`, `${branch.sampled} tokens`];
    const score = branch.written.length ? scoreOf(branch.written.at(-1)) : null;
    if (score !== null) told.push(`score ${fixed(score)}`);
    if (branch.answer !== null) told.push(`answer ${brief(branch.answer, 40)}`);
    if (branch.kept) told.push("leads to the answer");
    else if (branch.growing) told.push("growing");
    else if (!branch.open) told.push("pruned");
    return told.join(", ");
  }

  #key(event) {
    const first = this.tree?.roots.find((root) => root.shown);
    const here = this.selected ?? first;
    if (!here || event.altKey || event.metaKey || event.ctrlKey) return;
    const at = this.order?.indexOf(here) ?? -1;
    const shown = here.children.filter((child) => child.shown);
    const kept = shown.find((child) => child.kept) ?? shown[Math.floor((shown.length - 1) / 2)];
    const next = !this.selected && event.key.startsWith("Arrow") ? here : {
      ArrowLeft: here.parent,
      ArrowRight: kept,
      ArrowUp: this.order?.[at - 1],
      ArrowDown: this.order?.[at + 1],
      Home: first,
      End: this.tree.branches.get(this.tree.outcome?.kept[0]) ?? this.order?.at(-1),
    }[event.key];
    if (next) this.select(next.id);
    else if (event.key === "+" || event.key === "=") this.zoomTo(this.zoom * ZOOM.step);
    else if (event.key === "-") this.zoomTo(this.zoom / ZOOM.step);
    else if (event.key === "0") this.zoomTo(1);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  }

  #reveal() {
    const tip = this.selected && this.drawn.get(this.selected.id)?.tip;
    if (!tip) return;
    const [x, y, box] = [+tip.getAttribute("cx"), +tip.getAttribute("cy"), this.scroll];
    const near = (value, from, room) =>
      value < from + 20 || value > from + room - 20 ? value - room / 2 : from;
    box.scrollTo(near(x, box.scrollLeft, box.clientWidth), near(y, box.scrollTop, box.clientHeight));
  }

  #wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // the page's own scrolling
    event.preventDefault();
    const box = this.scroll.getBoundingClientRect();
    const at = { x: event.clientX - box.left, y: event.clientY - box.top };
    this.zoomTo(this.zoom * Math.exp(-event.deltaY / 250), at);
  }

  #dragging() {
    let from = null;
    const box = this.scroll;
    box.addEventListener("pointerdown", (event) => {
      this.dragged = false;
      if (event.pointerType !== "mouse" || event.button) return; // touch scrolls by itself
      from = { x: event.clientX, y: event.clientY, left: box.scrollLeft, top: box.scrollTop };
    });
    box.addEventListener("pointermove", (event) => {
      if (!from || !(event.buttons & 1)) return;
      const [x, y] = [event.clientX - from.x, event.clientY - from.y];
      this.dragged ||= Math.abs(x) + Math.abs(y) > 5;
      if (this.dragged) box.scrollTo(from.left - x, from.top - y);
    });
    window.addEventListener("pointerup", () => (from = null));
  }
}

/** Probability from which a token is not marked. */
const SURE = 0.9;

const r = (number) => Math.round(number * 10) / 10;

/** The class that colours a score. */
export const shade = (score) =>
  score === null || !Number.isFinite(score) ? "none" : `s${Math.min(9, Math.floor(score * 10))}`;

const percent = (logp) => `${fixed(100 * Math.exp(logp), logp < Math.log(.1) ? 1 : 0)} %`;

/** A token in its place in a text, marked if it was in doubt. */
const asToken = ({ text, logp }) => {
  const probability = Math.exp(logp);
  const doubtful = probability < SURE ? `token ${shade(probability)}` : "token";
  return el("span", { class: doubtful, title: `${percent(logp)}, ${fixed(logp)} nats`, text });
};

/** The tokens of a branch that were least likely, in words. */
function unlikely(branch) {
  const tokens = branch.steps.filter((step) => step.kind === "extend").flatMap(tokensOf);
  const least = tokens.sort((a, b) => a.logp - b.logp).slice(0, 3);
  return least.map(({ text, logp }) => `${brief(JSON.stringify(text), 20)} ${percent(logp)}`).join(", ") || "–";
}

/** What there is to say of a branch, as the content of a panel. */
export function inspect(branch, onSelect) {
  if (!branch) {
    return [
      el("h2", { text: "Branch" }),
      el("p", { class: "hint", text: "Choose a branch: click it, or move to the tree and use the arrow keys." }),
    ];
  }
  const fate = branch.kept ? "leads to the answer"
    : branch.growing ? "growing"
    : branch.dropped !== null ? `ended: ${branch.dropped}` : "open";
  const link = (other, text) =>
    el("button", { type: "button", class: "link", text, on: { click: () => onSelect(other) } });
  const facts = [
    ["Tokens", `${count(branch.sampled)} of its own, ${count(branch.end - branch.base)} on its path`],
    ["Log-probability", `${fixed(branch.meanLogp)} nats a token`],
    ["Entropy", `${fixed(branch.meanEntropy)} nats a token`],
    ["Least likely", unlikely(branch)],
    ["Stopped by", branch.steps.at(-1)?.stop || "–"],
    ["Answer", branch.answer ?? "–"],
  ];
  const text = el("div", { class: "text", tabindex: 0, "aria-label": "Text" });
  for (const [i, above] of branch.path.entries()) {
    const left = branch.path[i + 1]?.origin ?? Infinity; // where the path leaves this branch
    for (const step of above.written.filter((one) => one.start < left)) {
      const score = scoreOf(step);
      const title = `${above.id}: ${step.tokens} tokens` +
        (step.kind === "force" ? ", given" : `, ${fixed(step.logp / step.tokens)} nats a token`) +
        (step.rating === null ? "" : `, rated ${fixed(step.rating)}`) +
        (step.end > left ? `; left after ${left - step.start} of them` : "");
      const own = above === branch ? "own" : step.end > left ? "above partly" : "above";
      const tokens = tokensOf(step);
      const parts = tokens.length ? tokens.map(asToken) : [clean(step.text)];
      text.append(el("span", { class: `${own} ${shade(score)} ${step.kind}`, title }, ...parts));
    }
  }
  const list = (title, items) =>
    items.length ? el("section", {}, el("h3", { text: title }), el("ul", {}, ...items)) : null;
  return [
    el("h2", {}, el("span", { text: "Branch " }), el("code", { text: shortId(branch.id), title: branch.id })),
    el("p", { class: "fate" }, el("span", { class: branch.kept ? "won" : "", text: fate }),
      branch.parent ? link(branch.parent, `from ${shortId(branch.parent.id)}`) : null),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])),
    list("Judges", branch.ratings.map(({ judge, rating }) =>
      el("li", {}, el("meter", { min: 0, max: 1, value: rating, "aria-label": `rated ${fixed(rating)}` }),
        el("b", { text: fixed(rating) }), el("code", { text: judge })))),
    list("Options scored", branch.scores.map(([option, score]) =>
      el("li", {}, el("b", { text: fixed(score ?? -Infinity) }), el("span", { text: brief(option, 80) })))),
    list("Notes", branch.notes.map((note) => el("li", { text: note }))),
    text.childElementCount ? el("h3", { text: "Text" }) : null,
    text.childElementCount ? text : null,
    branch.prompt ? el("details", { open: !branch.steps.length }, el("summary", { text: "Prompt" }),
      el("div", { class: "text", text: clean(branch.prompt) })) : null,
  ].filter(Boolean);
}
