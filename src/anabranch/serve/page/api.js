// Talking to the server: JSON, and replies as streams of events.

import { byId } from "./dom.js";

const KEY = "anabranch.key";

let key = null; // kept until the tab is closed, where the browser allows that
let declined = false; // the key was asked for and not given: that is not repeated unasked
try {
  key = sessionStorage.getItem(KEY);
} catch { /* storage is off */ }

/** A refusal by the server, or none at all; its message is for people. */
export class Fault extends Error {}

/** JSON of a route. Throws Fault. */
export async function get(path) {
  return (await answered(path, {})).json();
}

/**
 * A chat reply, chunk by chunk. Throws Fault; an abort by `signal` ends it like the stream's end.
 * The server drops every branch of a reply whose client has gone.
 */
export async function* chat(body, signal) {
  try {
    const options = { method: "POST", body: JSON.stringify(body), signal };
    const reader = (await answered("/v1/chat/completions", options)).body
      .pipeThrough(new TextDecoderStream())
      .getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.match(/^data: (.*)$/m)?.[1];
        if (!data || data === "[DONE]") continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Fault(chunk.error.message);
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      throw error instanceof Fault ? error : new Fault("the connection to the server broke");
    }
  }
}

async function answered(path, options) {
  const headers = { "Content-Type": "application/json" };
  const used = key;
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("the server does not answer");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    if (used === key) await askForKey(used !== null); // else it was given meanwhile
    return answered(path, options);
  }
  let told;
  try {
    told = (await response.json()).error.message;
  } catch {
    told = `the server answered with status ${response.status}`;
  }
  throw new Fault(told);
}

let asking = null;

byId("unlock").addEventListener("click", () => {
  declined = false;
  askForKey(false).catch(() => {}); // who waits for it asks again
});

/** One dialog, however many requests wait for a key. */
function askForKey(refused) {
  if (declined) throw new Fault("a key is needed");
  asking ??= new Promise((resolve, reject) => {
    const dialog = byId("locked");
    const input = byId("key");
    input.value = "";
    byId("refused").hidden = !refused;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        declined = dialog.returnValue !== "use";
        byId("unlock").hidden = !declined;
        if (declined) {
          reject(new Fault("a key is needed"));
          return;
        }
        key = input.value;
        try {
          sessionStorage.setItem(KEY, key);
        } catch { /* it is known until the page is left */ }
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
