"use strict";
// Text from models enters the page through textContent only.

function make(tag, name, ...inside) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...inside.filter((part) => part !== null && part !== undefined));
  return node;
}

function written(text, tag = "span") {
  const node = make(tag, "model", String(text));
  node.dir = "auto";
  return node;
}

// ---- tables: sort by a column, numbers first from high to low ----

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const text = head.classList.contains("text");
    const before = head.getAttribute("aria-sort");
    const up = before ? before === "descending" : text;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.v;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // unknown values stay last
      const order = text ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}

// ---- problems ----

const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("list"), detail = document.getElementById("detail");
const task = document.getElementById("task"), outcome = document.getElementById("outcome");
const search = document.getElementById("search"), count = document.getElementById("count");
const PAGE = 100;
let shown = PAGE;

const share = (problem) => problem.runs.filter((run) => run.right).length / problem.runs.length;
const kinds = {
  all: () => true,
  mixed: (s) => s > 0 && s < 1,
  none: (s) => s === 0,
  every: (s) => s === 1,
};

function matching() {
  const words = search.value.trim().toLowerCase();
  return data.problems.filter((problem) =>
    (task.value === "" || problem.task === task.value) &&
    kinds[outcome.value](share(problem)) &&
    (words === "" || `${problem.question} ${problem.gold}`.toLowerCase().includes(words)));
}

function fill() {
  const found = matching();
  list.replaceChildren(...found.slice(0, shown).map((problem) => {
    const right = problem.runs.filter((run) => run.right).length;
    const button = make("button", "",
      make("span", "name", make("span", "", `${problem.name} ${problem.number}`),
        make("span", "muted", `${right} of ${problem.runs.length} right`)),
      make("span", "ask", written(problem.question)));
    button.addEventListener("click", () => {
      for (const other of list.children) other.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
      show(problem);
    });
    return button;
  }));
  if (found.length > shown) {
    const more = make("button", "", `show ${Math.min(PAGE, found.length - shown)} more`);
    more.addEventListener("click", () => {
      const next = shown;
      shown += PAGE;
      fill();
      list.children[next].focus();
    });
    list.append(more);
  }
  count.textContent = `${found.length} of ${data.problems.length} problems`;
}

const percent = (value) => `${(100 * value).toFixed(0)}%`;
const figures = (...parts) => make("span", "figures", parts.filter(Boolean).join(" · "));
const mark = (text, right) => {
  const node = make("span", right ? "right" : "wrong", written(text === null ? "no answer" : text));
  node.setAttribute("aria-label", `${right ? "right" : "wrong"}: ${text}`);
  return node;
};

function show(problem) {
  const crowd = problem.crowd;
  detail.replaceChildren(
    make("h3", "", `${problem.name} ${problem.number}`),
    written(problem.question, "pre"),
    make("p", "", "right answer ", make("strong", "", written(problem.gold)),
      crowd && make("span", "muted", "; all together say ", written(crowd.answer),
        crowd.runner_up === null ? "" : " or ", crowd.runner_up === null ? "" : written(crowd.runner_up),
        `, ${percent(crowd.confidence)} sure`)),
    ...problem.runs.map(runNode));
}

function runNode(run) {
  const node = make("details", "", make("summary", "",
    `${data.conditions[run.condition]} `, mark(run.answer, run.right),
    figures(run.seed ? `seed ${run.seed}` : "", `confidence ${percent(run.confidence)}`,
      `${run.tokens} tokens`, `${run.seconds.toPrecision(2)} s`)));
  const fillIn = () => {
    const inside = make("div", "inside");
    for (const note of run.notes) inside.append(make("p", "muted", written(note)));
    if (run.text) inside.append(written(run.text, "pre"));
    if (run.samples.length > 1) {
      inside.append(make("h3", "", `${run.samples.length} candidates`), ...run.samples.map((s) => {
        const head = make("summary", "", mark(s.answer, s.right),
          figures(`weight ${s.weight.toFixed(2)}`, `${s.tokens} tokens`));
        return make("details", "", head, written(s.text || "its text was not kept", "pre"));
      }));
    }
    if (run.tree) inside.append(make("h3", "", "tree"), treeNode(run.tree));
    node.append(inside);
  };
  node.addEventListener("toggle", fillIn, { once: true });
  return node;
}

function treeNode(tree) {
  if (tree.fault) return make("p", "muted", written(tree.fault));
  const lists = new Map();
  const top = make("ul", "tree");
  for (const branch of tree.branches) {
    const label = make("span", branch.kept ? "kept" : "muted", written(branch.id));
    const item = make("li", "", label,
      figures(branch.tokens ? `${branch.tokens} tokens` : "",
        branch.logp === null ? "" : `${branch.logp.toFixed(2)} per token`,
        branch.answer === null ? "" : `answer ${branch.answer}`,
        branch.kept ? "kept" : branch.dropped || ""));
    if (branch.text) item.append(written(branch.text, "pre"));
    const below = make("ul", "");
    lists.set(branch.id, [item, below]);
    const above = lists.get(branch.parent);
    if (!above) top.append(item);
    else {
      if (!above[1].isConnected && !above[1].parentNode) above[0].append(above[1]);
      above[1].append(item);
    }
  }
  if (tree.left_out) top.append(make("li", "muted", `${tree.left_out} more branches`));
  return top;
}

for (const input of [task, outcome, search]) {
  input.addEventListener("input", () => { shown = PAGE; fill(); });
}
// Arrows move through the list; Enter and space open, as on any button.
list.addEventListener("keydown", (event) => {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && document.activeElement[step];
  if (next) { event.preventDefault(); next.focus(); }
});
fill();
if (data.problems.length) list.firstElementChild.click();
