// One run: its request, its tree while it grows, and what came of it.

import { chat } from "./api.js";
import { brief, count, el, fixed, shortId } from "./dom.js";
import { Tree } from "./tree.js";
import { TreeView } from "./view.js";

export class Run {
  /** @param onSelect called with the branch chosen in the tree. */
  constructor(label, onSelect) {
    this.view = new TreeView(`Token tree ${label}`.trim(), (branch) => onSelect(this, branch));
    this.title = el("h2", { text: label });
    this.state = el("p", { class: "state" });
    this.result = el("div", { class: "result" });
    this.element = el("section", { class: "run", "aria-label": `Run ${label}`.trim() },
      el("div", { class: "head" }, this.title, this.state), this.view.element, this.result);
    this.record = null;
    this.abort = null;
  }

  get running() {
    return this.abort !== null;
  }

  /** Run a request to its end; returns its record, to be kept. */
  async start(asked, strategy) {
    this.abort = new AbortController();
    this.record = { asked, strategy, when: Date.now(), events: [], state: "running", content: "" };
    this.tree = new Tree();
    this.view.show(this.tree);
    this.title.textContent = strategy.text;
    this.result.replaceChildren();
    const record = this.record;
    const began = performance.now();
    this.#tellState(0);
    const clock = setInterval(() => this.#tellState(performance.now() - began), 200);
    try {
      for await (const chunk of chat(requestOf(asked, strategy.text), this.abort.signal)) {
        this.#take(chunk, record);
      }
      record.state = record.report ? "done" : "stopped";
    } catch (error) {
      record.state = "failed";
      record.fault = error.message;
    } finally {
      clearInterval(clock);
      this.abort = null;
      record.milliseconds = performance.now() - began;
      record.events.push(...this.tree.end());
    }
    this.#tell();
    return record;
  }

  /** Leave: the server then drops every branch. */
  stop() {
    this.abort?.abort();
  }

  /** Show a record that was kept. */
  open(record) {
    this.stop();
    this.record = record;
    this.tree = new Tree();
    for (const event of record.events ?? []) this.tree.add(event);
    this.tree.end();
    this.view.show(this.tree);
    this.title.textContent = record.strategy.text;
    this.#tell();
  }

  #take(chunk, record) {
    if (chunk.choices.length) {
      record.content += chunk.choices[0].delta.content ?? "";
    } else if (chunk.anabranch.event) {
      const event = chunk.anabranch.event;
      this.tree.add(event);
      if (event.event !== "grow") record.events.push(event);
      this.view.draw();
    } else {
      record.report = chunk.anabranch;
    }
  }

  #tellState(milliseconds) {
    const branches = [...this.tree.branches.values()].filter((b) => b.growing).length;
    this.state.textContent =
      `${fixed(milliseconds / 1000, 1)} s · ${count(this.tree.sampled)} tokens · ${branches} growing`;
  }

  #tell() {
    const { state, milliseconds, report, fault, asked } = this.record;
    const told = { done: "Done", stopped: "Stopped", failed: "Failed" }[state] ?? state;
    this.state.textContent =
      `${told} · ${fixed(milliseconds / 1000, 1)} s · ${asked.model} · seed ${report?.seed ?? asked.seed}`;
    this.result.replaceChildren();
    if (fault) this.result.append(el("p", { class: "fault", text: fault }));
    if (!this.record.events) {
      this.result.append(el("p", { class: "hint", text: "The tree was too large to be kept." }));
    }
    if (report) this.result.append(this.#answer(), this.#candidates(), this.#usage());
    if (this.tree.remarks.length) {
      this.result.append(el("details", { class: "remarks" }, el("summary", { text: "What else was noted" }),
        el("ul", { class: "notes" }, ...this.tree.remarks.map((text) => el("li", { text })))));
    }
    this.view.draw();
  }

  #answer() {
    const { content, report } = this.record;
    return el("div", { class: "answer" },
      el("h3", { text: "Answer" }),
      el("p", { class: "said", text: content }),
      el("p", { class: "confidence" },
        el("meter", { min: 0, max: 1, value: report.confidence, "aria-hidden": "true" }),
        el("span", { text: `confidence ${fixed(report.confidence)}` })),
      report.notes.length
        ? el("ul", { class: "notes" }, ...report.notes.map((note) => el("li", { text: note })))
        : null);
  }

  #candidates() {
    const rows = [...grouped(this.record.report.candidates)].map(([answer, candidates]) =>
      el("tr", {},
        el("th", { scope: "row", text: answer === null ? "none read" : brief(answer, 60) }),
        el("td", { class: "weight" },
          el("meter", { min: 0, max: 1, value: candidates[0].weight, "aria-hidden": "true" }),
          el("span", { text: fixed(candidates[0].weight) })),
        el("td", {}, ...candidates.map((candidate) =>
          el("button", { type: "button", class: "link", text: shortId(candidate.branch),
            title: `${candidate.branch}: ${candidate.tokens} tokens, ${fixed(candidate.logp / candidate.tokens)} nats each` +
              (candidate.done ? "" : ", unfinished"),
            on: { click: () => this.view.select(candidate.branch) } })))));
    return el("div", { class: "candidates" },
      el("h3", { text: "Candidates" }),
      el("div", { class: "rows", tabindex: 0, "aria-label": "Candidates" },
        el("table", {},
          el("thead", {}, el("tr", {}, ...["Answer", "Weight", "Branches"].map((text) =>
            el("th", { scope: "col", text })))),
          el("tbody", {}, ...rows))));
  }

  #usage() {
    const { usage } = this.record.report;
    const facts = [
      ["Sampled", usage.sampled_tokens, "tokens drawn on all branches"],
      ["Discarded", usage.sampled_tokens - usage.kept_tokens, "of these, on branches that do not lead to the answer"],
      ["Given", usage.forced_tokens, "tokens given to branches, such as cues and judges' questions"],
      ["Computed", usage.computed_tokens, "rows run through the model for the first time"],
      ["Cached", usage.cached_tokens, "tokens that needed no row of their own"],
      ["Recomputed", usage.recomputed_tokens, "rows run again"],
      ["Passes", usage.passes, "forward passes that this took part in"],
      ["Seconds", usage.seconds, "in the engine"],
      ["Tokens/s", usage.sampled_tokens / usage.seconds, "sampled in a second, all branches together"],
    ];
    return el("div", { class: "usage" },
      el("h3", { text: "Usage" }),
      el("dl", {}, ...facts.map(([name, value, title]) =>
        el("div", { title }, el("dt", { text: name }),
          el("dd", { text: name === "Seconds" ? fixed(value, 1) : count(value) })))));
  }
}

/** What is sent. */
function requestOf(asked, strategy) {
  const budget = {};
  if (asked.tokens !== undefined) budget.tokens = asked.tokens;
  if (asked.seconds !== undefined) budget.seconds = asked.seconds;
  const system = asked.system ? [{ role: "system", content: asked.system }] : [];
  return {
    model: asked.model,
    messages: [...system, { role: "user", content: asked.problem }],
    stream: true,
    stream_options: { include_usage: true },
    anabranch: { strategy, seed: asked.seed, trace: true, budget },
  };
}

/** Candidates by their answers, in order. */
function grouped(candidates) {
  const groups = new Map();
  for (const candidate of candidates) {
    groups.set(candidate.answer, [...(groups.get(candidate.answer) ?? []), candidate]);
  }
  return groups;
}
