// Runs kept in this browser: a list of what was asked, and each run under a key of its own.

const LIST = "anabranch.runs";
const RUN = "anabranch.run.";
const MOST_RUNS = 40;
const MOST_CHARACTERS = 3_000_000; // of all runs; browsers allow about five million
const MOST_OF_ONE = 1_500_000;

/** What there is, newest first: id, when, strategy, problem, answer, state, size. */
export function runs() {
  try {
    const list = JSON.parse(localStorage.getItem(LIST)) ?? [];
    return list.filter((entry) => typeof entry?.id === "string");
  } catch {
    return []; // damaged, or storage is off
  }
}

/** Keep a run; old ones make room. Returns its id, or null where nothing can be kept. */
export function keep(record) {
  let text = JSON.stringify(record);
  if (text.length > MOST_OF_ONE) text = JSON.stringify({ ...record, events: null });
  const id = `${record.when.toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  const entry = {
    id, when: record.when, strategy: record.strategy.text, problem: record.asked.problem.slice(0, 200),
    answer: record.content.slice(0, 80), state: record.state, size: text.length,
  };
  const list = [entry, ...runs()];
  const size = () => list.reduce((sum, one) => sum + (one.size || 0), 0);
  while (list.length > MOST_RUNS || (size() > MOST_CHARACTERS && list.length > 1)) {
    forget(list);
  }
  for (;;) {
    try {
      localStorage.setItem(RUN + id, text);
      localStorage.setItem(LIST, JSON.stringify(list));
      return id;
    } catch {
      if (list.length < 2) return null;
      forget(list); // the browser allows less than we thought
    }
  }
}

function forget(list) {
  localStorage.removeItem(RUN + list.pop().id);
}

/** A run, or null if it is damaged or gone. */
export function load(id) {
  try {
    const record = JSON.parse(localStorage.getItem(RUN + id));
    return record?.asked && record.strategy ? record : null;
  } catch {
    return null;
  }
}

/** Forget one run. */
export function remove(id) {
  localStorage.removeItem(RUN + id);
  localStorage.setItem(LIST, JSON.stringify(runs().filter((entry) => entry.id !== id)));
}

/** Forget all. */
export function clear() {
  for (const key of Object.keys(localStorage)) {
    if (key === LIST || key.startsWith(RUN)) localStorage.removeItem(key);
  }
}
