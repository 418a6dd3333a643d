// A strategy and its parameters, as fields made from what is registered.

import { byId, el, prose } from "./dom.js";

const LISTED = { judge: "judges", strategy: "strategies" };

/** Options for fields that take a judge or strategy by name. */
export function list(kind, entries) {
  const options = entries.map((e) => el("option", { value: e.name, label: e.summary }));
  document.body.append(el("datalist", { id: LISTED[kind] }, ...options));
}

export class Picker {
  constructor(host, title, entries, chosen) {
    this.entries = new Map(entries.map((entry) => [entry.name, entry]));
    this.choice = el("select", { on: { change: () => this.#show({}) } },
      ...entries.map((entry) => el("option", { value: entry.name, text: entry.name })));
    this.about = el("div", { class: "about" });
    this.fields = el("div", { class: "grid" });
    host.replaceChildren(el("fieldset", {},
      el("legend", { text: title }),
      el("label", { class: "field" }, el("span", { class: "unseen", text: title }), this.choice),
      this.about, this.fields));
    this.set(chosen, {});
  }

  /** Choose a strategy; values are by parameter, as `values` gives them. */
  set(name, values) {
    if (!this.entries.has(name)) return;
    this.choice.value = name;
    this.#show(values);
  }

  get name() {
    return this.choice.value;
  }

  /** What differs from the defaults. */
  get values() {
    const changed = {};
    for (const parameter of this.entries.get(this.name).parameters) {
      const value = this.inputs.get(parameter.name).value.trim();
      if (value !== "" && value !== String(parameter.default)) changed[parameter.name] = value;
    }
    return changed;
  }

  /** The strategy as the server reads it: `vote(n=16)`. */
  get text() {
    const types = new Map(this.entries.get(this.name).parameters.map((p) => [p.name, p.type]));
    const told = Object.entries(this.values).map(([name, value]) => {
      const type = types.get(name);
      if (type === "int" || type === "float") return `${name}=${Number(value)}`;
      return `${name}=${type in LISTED ? value : JSON.stringify(value)}`;
    });
    return told.length ? `${this.name}(${told.join(", ")})` : this.name;
  }

  #show(values) {
    const entry = this.entries.get(this.name);
    const facts = [["Costs", entry.cost], ["Use", entry.use]].filter(([, told]) => told);
    this.about.replaceChildren(
      el("p", {}, ...prose(entry.summary)),
      el("dl", {}, ...facts.flatMap(([name, told]) => [el("dt", { text: name }), el("dd", {}, ...prose(told))])),
      el("details", {}, el("summary", { text: "More" }),
        el("p", {}, ...prose(entry.about)), el("p", { class: "hint", text: entry.paper })));
    this.inputs = new Map();
    this.fields.replaceChildren(...entry.parameters.map((parameter) => {
      const input = this.#input(parameter, values[parameter.name] ?? String(parameter.default));
      this.inputs.set(parameter.name, input);
      const wide = parameter.type in LISTED || parameter.type === "text" ? " wide" : "";
      return el("label", { class: `field${wide}`, title: parameter.allowed },
        el("span", { text: parameter.name.replaceAll("_", " ") }), input);
    }));
  }

  #input(parameter, value) {
    const { type, low, high, low_open: above } = parameter;
    if (type === "one_of") {
      const input = el("select", {},
        ...parameter.options.map((option) => el("option", { value: option, text: option })));
      input.value = value;
      return input;
    }
    const input = el("input", type === "int" || type === "float"
      ? { type: "number", min: low, max: high, step: type === "int" ? 1 : "any" }
      : { type: "text", maxlength: parameter.longest ?? 900, list: LISTED[type], spellcheck: "false" });
    input.value = value;
    input.placeholder = String(parameter.default);
    if (above) {
      input.addEventListener("input", () => {
        const low_ = input.value !== "" && Number(input.value) <= low;
        input.setCustomValidity(low_ ? `above ${low}, please` : "");
      });
    }
    return input;
  }
}

/** The fields that all strategies share: values that were given. */
export function shared() {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  return {
    model: byId("model").value,
    problem: byId("problem").value.trim(),
    system: byId("system").value.trim(),
    tokens: number("tokens"),
    seconds: number("seconds"),
    seed: number("seed"),
  };
}

/** Put such values back into the form. */
export function restore({ model, problem, system, tokens, seconds, seed }) {
  if ([...byId("model").options].some((option) => option.value === model)) byId("model").value = model;
  const values = { problem, system, tokens, seconds, seed };
  for (const [id, value] of Object.entries(values)) byId(id).value = value ?? "";
}
