// Elements: the page is built from these, never from HTML in strings.

export const $ = (id) => document.getElementById(id);

// An element with properties (`class`, `aria-…` and `data-…` become attributes, functions become listeners) and children.
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name === "class" ? "class" : name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  gauge: "M4 16a8 8 0 1 1 12 0M10 12l4-4",
  forget: "M8 4H4v12h4M12 6l4 4-4 4M8 10h8",
  menu: "M3 5h14M3 10h14M3 15h14",
  new: "M10 4v12M4 10h12",
  sliders: "M3 6h8M15 6h2M3 14h2M9 14h8M13 4v4M7 12v4",
  edit: "M4 16l1-4 8-8 3 3-8 8zM11 6l3 3",
  delete: "M4 6h12M8 6V4h4v2M6 6l1 10h6l1-10",
  copy: "M7 7h9v9H7zM13 7V4H4v9h3",
  again: "M16 10a6 6 0 1 1-2-4.500M16 3v4h-4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  close: "M5 5l10 10M15 5L5 15",
  image: "M3 4h14v12H3zM3 13l4-4 4 4 2-2 4 4M13 8v.1",
  export: "M10 3v9M6 8l4 4 4-4M4 16h12",
  ghost: "M4 17V9a6 6 0 0 1 12 0v8l-3-2-3 2-3-2zM8 9v1M12 9v1",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

// A button that shows an icon; its name is for screen readers and the tooltip.
export const iconButton = (name, label, onclick, props = {}) =>
  h("button", { type: "button", class: "icon", title: label, "aria-label": label, onclick, ...props }, icon(name));

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Runs `task` once `ms` have passed without another call.
export function debounce(task, ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(task, ms, ...args);
  };
}
