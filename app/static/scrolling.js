// Follows the end of the conversation, for readers who are at its end only.

import { $ } from "./dom.js";

const NEAR = 64;
const box = () => $("scroll");

export const isAtEnd = () => box().scrollHeight - box().scrollTop - box().clientHeight < NEAR;

export function toEnd() {
  box().scrollTop = box().scrollHeight;
  $("to-end").hidden = true;
}

export function keepPlace(change) {
  const wasAtEnd = isAtEnd();
  change();
  if (wasAtEnd) toEnd();
  else $("to-end").hidden = isAtEnd();
}

export function install() {
  box().addEventListener("scroll", () => ($("to-end").hidden = isAtEnd()), { passive: true });
  $("to-end").onclick = () => {
    toEnd();
    $("prompt").focus();
  };
}
