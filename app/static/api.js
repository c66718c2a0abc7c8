// Requests to the service, with the key where it asks for one.

import { askKey } from "./dialogs.js";

export { NoKeyError } from "./dialogs.js";

const KEY = "parley-key";
const ADMIN_KEY = "parley-admin-key"; // of the view of administrators alone; one chats with the other
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

export const key = () => sessionStorage.getItem(KEY);
export const hasKey = () => key() !== null;
export const forgetKey = () => [KEY, ADMIN_KEY].forEach((name) => sessionStorage.removeItem(name));

let asking = null; // several requests that are refused together share one dialog

export async function api(path, { keyName = KEY, ...options } = {}) {
  for (;;) {
    const used = sessionStorage.getItem(keyName);
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401) throw problem;
    if (used === sessionStorage.getItem(keyName)) await (asking ??= newKey(used ? problem : null, keyName));
  }
}

async function problemOf(response) {
  const error = (await response.json().catch(() => null))?.error;
  const message = error?.message ?? `The service answered ${response.status} ${response.statusText}`.trim();
  return new ApiError(message, response.status, error?.code);
}

async function newKey(problem, keyName) {
  try {
    sessionStorage.setItem(keyName, await askKey(problem && sentence(problem)));
    if (keyName === KEY) dispatchEvent(new Event("parley:key"));
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

// With the key of an administrator, if one was entered; the key one chats with may be one.
const asAdmin = () => ({ keyName: sessionStorage.getItem(ADMIN_KEY) === null ? KEY : ADMIN_KEY });
export const adminGet = (path) => get(path, asAdmin());
export const adminPost = (path, body) => post(path, body, asAdmin());
export const enterAdminKey = () => (asking ??= newKey(null, ADMIN_KEY));

// Random as a UUID is; `crypto.randomUUID` exists over TLS and on loopback only.
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (each) => each.toString(16).padStart(2, "0")).join("");
