// Light, dark, or as the system has it. Loaded before the page is shown.

import { read, write } from "./storage.js";

export const THEMES = ["system", "light", "dark"];
export const theme = () => read("theme", "system");

export function setTheme(name) {
  write("theme", name === "system" ? null : name);
  apply();
}

function apply() {
  if (theme() === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme();
}

apply();
