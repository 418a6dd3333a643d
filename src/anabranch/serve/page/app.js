// The page: a form, one run or two beside each other, the branch chosen in them, and history.

import { Fault, get } from "./api.js";
import { brief, byId, el } from "./dom.js";
import { Picker, list, restore, shared } from "./form.js";
import { watch } from "./gauges.js";
import * as history from "./history.js";
import { Run } from "./run.js";
import { inspect } from "./view.js";

const THEMES = ["auto", "light", "dark"];
const RETRY_MS = 1500;
const narrow = matchMedia("(max-width: 60rem)");

const pickers = [];
const panels = [new Run("", select), new Run("", select)];
let chosen = null; // whose branch the inspector shows
let inspected = ""; // what it shows of it
let reopened = 1; // where a run was last reopened

// ---- theme ---------------------------------------------------------------------------------------

function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
}

function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

let theme = THEMES.includes(stored("anabranch.theme")) ? stored("anabranch.theme") : "auto";
applyTheme(theme);
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  localStorage.setItem("anabranch.theme", theme);
  applyTheme(theme);
});

// ---- running -------------------------------------------------------------------------------------

const comparing = () => byId("compare").checked;

function arrange() {
  byId("second").hidden = !comparing();
  byId("runs").replaceChildren(...panels.slice(0, comparing() ? 2 : 1).map((panel) => panel.element));
  byId("desk").classList.toggle("two", comparing());
}

function say(text) {
  byId("said").textContent = text;
}

function complain(text) {
  byId("fault").textContent = text;
  byId("fault").hidden = !text;
}

function running() {
  return panels.some((panel) => panel.running);
}

function showRunning() {
  byId("run").disabled = running();
  byId("stop").disabled = !running();
}

async function run() {
  if (running() || !byId("ask").reportValidity()) return;
  complain("");
  const asked = shared();
  asked.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  for (const panel of panels) panel.view.select(null);
  const strategies = pickers.slice(0, comparing() ? 2 : 1).map((picker) => ({
    name: picker.name, values: picker.values, text: picker.text,
  }));
  if (narrow.matches) {
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    byId("runs").scrollIntoView({ behavior });
  }
  const works = strategies.map((strategy, i) => panels[i].start(asked, strategy));
  showRunning();
  say("Running.");
  const records = await Promise.all(works);
  showRunning();
  for (const record of records) {
    if (record.state === "failed") complain(record.fault);
    if (record.events.length && !history.keep(record)) {
      byId("history-hint").textContent = "This browser keeps no data: there is no history.";
    }
  }
  say(records.map((record) =>
    record.state === "done" ? `Answer: ${brief(record.content, 200)}` : `${record.state}.`).join(" "));
  if (!chosen && records.length === 1) panels[0].view.select(records[0].report?.candidates[0]?.branch);
  listHistory();
}

function stop() {
  for (const panel of panels) panel.stop();
}

/** Show a branch of a run; null: none. */
function select(panel, branch) {
  if (branch && panel !== chosen) {
    const other = panels.find((one) => one !== panel);
    if (other.view.selected) other.view.select(null);
  } else if (!branch && panel !== chosen && chosen) {
    return; // the other one was left for this one
  }
  chosen = branch ? panel : null;
  const inspector = byId("inspector");
  const state = branch ? JSON.stringify([panels.indexOf(panel), branch.state]) : "none";
  if (state === inspected) return; // so that what is focused or marked in it stays so
  const name = branch ? `${panels.indexOf(panel)} ${branch.id}` : "";
  const same = branch !== null && inspector.dataset.branch === name;
  inspected = state;
  const [before, top] = [inspector.querySelector(".text"), inspector.scrollTop];
  const inside = before?.scrollTop ?? 0;
  inspector.replaceChildren(...inspect(branch, (other) => panel.view.select(other.id)));
  inspector.dataset.branch = name;
  inspector.scrollTop = same ? top : 0;
  const text = inspector.querySelector(".text");
  const own = text?.querySelector(".own");
  if (same) text?.scrollTo(0, inside);
  else if (own) text.scrollTo(0, own.offsetTop - text.clientHeight / 3);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("problem").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    run();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running()) {
    event.preventDefault();
    stop();
  }
});
byId("stop").addEventListener("click", stop);
byId("compare").addEventListener("change", arrange);

// ---- history -------------------------------------------------------------------------------------

const WHEN = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "short" });

function listHistory() {
  const entries = history.runs();
  byId("clear").hidden = !entries.length;
  byId("history").replaceChildren(...entries.map((entry) =>
    el("li", {},
      el("button", { type: "button", class: "past", on: { click: () => reopen(entry.id) } },
        el("b", { text: brief(entry.problem, 70) }),
        el("span", { text: brief(`${entry.strategy} → ${entry.answer || entry.state}`, 70) }),
        el("time", { text: WHEN.format(entry.when) })),
      el("button", { type: "button", class: "quiet", title: "Forget this run", "aria-label":
        `Forget ${brief(entry.problem, 40)}`, text: "×", on: { click: () => {
          history.remove(entry.id);
          listHistory();
        } } }))));
}

function reopen(id) {
  if (running()) return;
  const record = history.load(id);
  if (!record) {
    complain("This run is damaged or gone.");
    history.remove(id);
    listHistory();
    return;
  }
  complain("");
  restore(record.asked);
  const place = comparing() ? 1 - reopened : 0; // one after the other
  reopened = place;
  pickers[place].set(record.strategy.name, record.strategy.values);
  panels[place].view.select(null);
  panels[place].open(record);
  say("Reopened.");
}

byId("clear").addEventListener("click", () => {
  history.clear();
  listHistory();
});

// ---- begin ---------------------------------------------------------------------------------------

async function begin() {
  arrange();
  select(panels[0], null);
  watch(byId("gauges"));
  for (;;) {
    try {
      const [models, strategies, judges] = await Promise.all(
        ["/v1/models", "/v1/strategies", "/v1/judges"].map(get));
      const own = models.data.filter((model) => model.strategy === null);
      if (own.length) {
        byId("model").replaceChildren(...own.map((model) => el("option", { value: model.id, text: model.id })));
        list("judge", judges.data);
        list("strategy", strategies.data);
        pickers.push(
          new Picker(byId("first"), "Strategy", strategies.data, "vote"),
          new Picker(byId("second"), "Compared with", strategies.data, "beam"));
        break;
      }
      complain("The model is being loaded.");
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      complain(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
  complain("");
  listHistory(); // only now, as what is reopened fills the form
  document.documentElement.dataset.ready = "";
  if (!narrow.matches) byId("problem").focus();
}

begin();
