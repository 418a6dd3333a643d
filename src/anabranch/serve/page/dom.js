// Elements, made without ever reading text as markup.

const SVG = "http://www.w3.org/2000/svg";

// Control characters and overrides of direction can make a text look like what it is not.
const STEERING =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** A text that somebody else wrote, made harmless to show. */
export const clean = (text) => String(text).replace(STEERING, "\ufffd");

/** An element with properties ("text", "on": listeners, else attributes) and children. */
export function el(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** Likewise, of SVG. */
export function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key === "text") element.textContent = clean(value);
    else if (key === "on") {
      for (const [event, heard] of Object.entries(value)) element.addEventListener(event, heard);
    } else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Set an attribute, if that changes it. */
export function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** A text in which `code` stands between backticks, as nodes. */
export const prose = (text) =>
  text.split("`").map((part, i) => (i % 2 ? el("code", { text: part }) : clean(part)));

export const byId = (id) => document.getElementById(id);

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count with separators, an unknown one as a dash. */
export const count = (value) => (Number.isFinite(value) ? GROUPED.format(value) : "–");

/** A number with so many decimals. */
export const fixed = (value, decimals = 2) =>
  Number.isFinite(value) ? value.toFixed(decimals).replace("-", "−") : "–";

/** A branch's name, its middle left out where it is long. */
export const shortId = (id) => (id.length > 14 ? `${id.slice(0, 5)}…${id.slice(-7)}` : id);

/** The first line of a text, cut to a length. */
export function brief(text, length) {
  const line = clean(text).replace(/\s+/g, " ").trim();
  return line.length > length ? `${line.slice(0, length - 1)}…` : line;
}
