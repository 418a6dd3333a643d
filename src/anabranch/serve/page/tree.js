// The tree that a run's events describe. The fields of events: anabranch/program/trace.py; `grow`:
// anabranch/serve/think.py. Nothing here touches the document.

const OWN = new Set(["event", "branch", "seconds"]);

/** A branch: what it wrote itself, step by step, and what was said of it. */
class Branch {
  constructor(id, parent, position) {
    this.id = id;
    this.parent = parent;
    this.origin = this.end = position;
    this.base = parent ? parent.base : position; // end of its prompt
    this.depth = parent ? parent.depth + 1 : 0;
    this.children = [];
    this.steps = [];
    this.live = null; // the step under way
    this.ratings = [];
    this.scores = [];
    this.notes = [];
    this.prompt = "";
    this.answer = null;
    this.done = false;
    this.dropped = null; // why
    this.kept = false;
  }

  get path() {
    return this.parent ? [...this.parent.path, this] : [this];
  }

  /** What changes when there is something new to say of it. */
  get state() {
    const { id, end, ratings, scores, notes, answer, dropped, kept } = this;
    return [id, end, this.growing, this.steps.length, ratings.length, scores.length, notes.length,
      answer, dropped, kept];
  }

  get growing() {
    return this.live !== null;
  }

  /** All steps, the one under way too. */
  get written() {
    return this.live ? [...this.steps, this.live] : this.steps;
  }

  /** Tokens it drew itself. */
  get sampled() {
    return total(this.written.filter((s) => s.kind === "extend").map((s) => s.tokens));
  }

  /** Mean log-probability of these, nats. */
  get meanLogp() {
    const drawn = this.written.filter((step) => step.kind === "extend");
    return total(drawn.map((step) => step.logp)) / total(drawn.map((step) => step.tokens));
  }

  /** Mean entropy where they were drawn, nats. */
  get meanEntropy() {
    const drawn = this.written.filter((step) => step.kind === "extend");
    const sum = total(drawn.map((step) => step.entropy * step.tokens));
    return sum / total(drawn.map((step) => step.tokens));
  }

  /** Whether it or what came of it may still go on. */
  get open() {
    return this.dropped === null || this.children.some((child) => child.open);
  }
}

const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

/** A score in 0..1: a judge's rating, else the geometric mean of the tokens' probabilities. */
export function scoreOf(step) {
  if (step.rating !== null) return step.rating;
  return step.kind === "extend" && step.tokens ? Math.exp(step.logp / step.tokens) : null;
}

/** The tokens of a step and their log-probabilities, nats; none while it is under way. */
export function tokensOf({ text, logps, borders }) {
  const characters = [...text]; // borders count code points
  return borders.map((border, i) => ({
    text: characters.slice(borders[i - 1] ?? 0, border).join(""), logp: logps[i] ?? -Infinity,
  }));
}

export class Tree {
  constructor() {
    this.branches = new Map();
    this.roots = [];
    this.outcome = null; // the event `answer`
    this.remarks = []; // events of no branch, in words
    this.ended = false; // no event will come
    this.sampled = 0;
  }

  /** Take the next event. What does not fit what came before is passed over. */
  add(event) {
    if (event.event === "grow") return event.steps.forEach((step) => this.#grow(step));
    if (event.event === "open" || event.event === "fork") return this.#begin(event);
    if (event.event === "answer") return this.#end(event);
    const branch = this.branches.get(event.branch);
    if (!branch) this.remarks.push(inWords(event));
    else if (event.event === "extend" || event.event === "force") this.#step(branch, event);
    else this.#say(branch, event);
  }

  /** Nothing more will come. Returns events that end the steps under way, taken in already. */
  end() {
    this.ended = true;
    const steps = [...this.branches.values()].filter((branch) => branch.live).map((branch) => ({
      event: "extend", branch: branch.id, ...branch.live, stop: "stopped",
    }));
    for (const step of steps) this.add(step);
    return steps;
  }

  #begin({ branch: id, parent, position, text }) {
    const above = parent === undefined ? null : this.branches.get(parent);
    if (above === undefined || this.branches.has(id)) return;
    const branch = new Branch(id, above, position);
    branch.prompt = text ?? "";
    this.branches.set(id, branch);
    (above ? above.children : this.roots).push(branch);
  }

  #grow({ branch: id, text, tokens, logp, entropy }) {
    const branch = this.branches.get(id);
    if (!branch) return;
    const live = (branch.live ??= {
      kind: "extend", start: branch.end, text: "", tokens: 0, logp: 0, entropy: 0, stop: "",
      rating: null, logps: [], borders: [],
    });
    const before = live.entropy * live.tokens;
    live.text += text;
    live.tokens += tokens;
    live.logp += logp ?? 0;
    live.entropy = (before + (entropy ?? 0)) / Math.max(1, live.tokens);
    live.end = branch.end = live.start + live.tokens;
    this.sampled += tokens;
  }

  #step(branch, { event, start, end, text, logp, entropy, stop, logps = [], borders = [] }) {
    const tokens = end - start;
    if (event === "extend") this.sampled += tokens - (branch.live?.tokens ?? 0);
    branch.live = null;
    branch.end = end;
    // The text of a step of no tokens says nothing.
    if (tokens > 0) {
      branch.steps.push({
        kind: event, start, end, text, tokens, logp: logp ?? -Infinity, entropy, stop,
        rating: null, logps, borders,
      });
    }
  }

  #say(branch, event) {
    if (event.event === "drop") {
      branch.live = null;
      if (!this.outcome) branch.dropped = event.reason || "no longer needed";
    } else if (event.event === "rate") {
      branch.ratings.push({ judge: event.judge, rating: event.rating });
      const last = branch.path.reverse().find((above) => above.steps.length);
      if (last) last.steps.at(-1).rating = event.rating;
    } else if (event.event === "score") {
      event.options.forEach((option, i) => branch.scores.push([option, event.scores[i]]));
    } else if (event.event === "thought") {
      branch.answer = event.answer;
      branch.done = event.done;
    } else if (event.event !== "peek") {
      branch.notes.push(inWords(event));
    }
  }

  #end(event) {
    this.outcome = event;
    for (const id of event.kept) {
      for (const branch of this.branches.get(id)?.path ?? []) branch.kept = true;
    }
  }
}

/** An event that has no place of its own. */
function inWords(event) {
  const fields = Object.entries(event).filter(([name]) => !OWN.has(name));
  const say = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return `${event.event}: ${fields.map(([, value]) => say(value)).join(", ")}`;
}

/**
 * Where branches lie: a lane each, in order of their forks; a branch that ends in its forks lies
 * between them. Sets `lane`, `flow` (tokens of it and all that grew from it) and `shown`.
 *
 * Returns lanes, most tokens on a path, and forks on the deepest one.
 */
export function layOut(tree, everything) {
  let lanes = 0;
  const size = { lanes: 1, tokens: 1, forks: 0 };
  const weigh = (branch) => {
    branch.flow = total(branch.written.map((step) => step.tokens));
    const alone = tree.roots.length === 1 && !branch.parent;
    branch.shown = everything || alone || branch.sampled > 0 || branch.kept;
    for (const child of branch.children) {
      weigh(child);
      branch.shown ||= child.shown;
      branch.flow += child.flow;
    }
  };
  const place = (branch, forks) => {
    branch.forks = forks;
    size.tokens = Math.max(size.tokens, branch.end - branch.base);
    size.forks = Math.max(size.forks, forks);
    const below = branch.children.filter((child) => child.shown);
    const goesOn = below.length > 0 && below.every((child) => child.origin < branch.end);
    const half = goesOn ? Math.ceil(below.length / 2) : below.length;
    below.slice(0, half).forEach((child) => place(child, forks + 1));
    if (goesOn || !below.length) branch.lane = lanes++;
    below.slice(half).forEach((child) => place(child, forks + 1));
    if (!goesOn && below.length) branch.lane = (below[0].lane + below.at(-1).lane) / 2;
  };
  for (const root of tree.roots) {
    weigh(root);
    if (root.shown) place(root, 0);
  }
  size.lanes = Math.max(1, lanes);
  return size;
}
