// What this browser keeps: drafts, settings, theme. A browser that forbids storage keeps it until the page is closed.

const PREFIX = "parley:";
const memory = new Map();

export function read(name, otherwise = null) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return memory.get(name) ?? otherwise;
  }
}

export function write(name, value) {
  const isEmpty = value === null || value === "" || (typeof value === "object" && !Object.keys(value).length);
  try {
    if (isEmpty) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    memory.set(name, isEmpty ? null : value);
  }
}

export function move(from, to) {
  write(to, read(from));
  write(from, null);
}

// Everything of one's own; the theme stays.
export function forget() {
  memory.clear();
  try {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX) && name !== `${PREFIX}theme`);
    for (const name of names) localStorage.removeItem(name);
  } catch {
    // nothing was kept
  }
}
