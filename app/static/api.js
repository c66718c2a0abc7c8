// Requests to the service, with the key where it asks for one.

import { askKey } from "./dialogs.js";

const KEY = "parley-key";
const PASSING = [429, 502, 503, 504];

export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}

// The service is away, full or about to restart: the same request may succeed later.
export const isPassing = (error) => error instanceof TypeError || PASSING.includes(error.status);
export const isAway = (error) => error instanceof TypeError || [502, 503, 504].includes(error.status);

export function sentence(error) {
  const text = error instanceof TypeError ? "The service cannot be reached" : error.message;
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

let asking = null; // several requests that are refused together share one dialog

export async function api(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401) throw problem;
    if (used === sessionStorage.getItem(KEY)) await (asking ??= newKey(used ? problem : null));
  }
}

async function problemOf(response) {
  const error = (await response.json().catch(() => null))?.error;
  const message = error?.message ?? `The service answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(message, response.status, error?.code);
}

async function newKey(problem) {
  try {
    sessionStorage.setItem(KEY, await askKey(problem && sentence(problem)));
    dispatchEvent(new Event("parley:key"));
  } finally {
    asking = null;
  }
}

export const get = async (path, options) => (await api(path, options)).json();
export const remove = (path) => api(path, { method: "DELETE" });

export const send = (path, body, { headers, ...options } = {}) =>
  api(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", ...headers },
    ...options,
  });

export const post = async (path, body, options) => (await send(path, body, options)).json();

// Random as a UUID is; `crypto.randomUUID` exists over TLS and on loopback only.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
