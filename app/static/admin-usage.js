// What was used since midnight (UTC), by project and key.

import { adminGet } from "./api.js";
import { h } from "./dom.js";

const DAY_S = 86_400;
const KINDS = ["completions", "embeddings"];
const COLUMNS = ["Project", "Key", "Requests", "Failed", "Tokens in", "Tokens out"];
const NUMBERS = new Set(COLUMNS.slice(2));
const SHOWN = 12; // characters of an id that has no name
const count = (number) => number.toLocaleString("en");

export class AdminUsage {
  names = new Map(); // of projects and keys, by id

  constructor() {
    this.body = h("tbody");
    const head = h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col", class: NUMBERS.has(name) ? "to-right" : "" }, name))));
    this.table = h("div", { class: "table", tabIndex: 0, role: "group", "aria-label": "Usage of today" }, h("table", {}, head, this.body));
    this.none = h("p", { class: "none" }, "Nothing yet.");
    this.element = h("section", { "aria-label": "Usage" }, h("h3", {}, "Usage of today (UTC)"), this.table, this.none);
  }

  async load() {
    const start = Math.floor(Date.now() / 1000 / DAY_S) * DAY_S;
    const query = `start_time=${start}&limit=1&group_by[]=project_id&group_by[]=api_key_id`;
    const pages = await Promise.all(KINDS.map((kind) => adminGet(`v1/organization/usage/${kind}?${query}`)));
    const results = together(pages.flatMap(({ data }) => data).flatMap(({ results: found }) => found));
    await this.findNames(results);
    this.show(results);
  }

  async findNames(results) {
    if (results.every(({ project_id: id }) => this.names.has(id))) return;
    for (const { project_id: id } of results) this.names.set(id, id); // keys of the settings have no project
    const { data } = await adminGet("v1/organization/projects?limit=100&include_archived=true");
    const used = data.filter(({ id }) => this.names.has(id));
    const keys = await Promise.all(used.map(({ id }) => adminGet(`v1/organization/projects/${id}/api_keys?limit=100`)));
    for (const { id, name } of [...used, ...keys.flatMap((page) => page.data)]) this.names.set(id, name);
  }

  show(results) {
    this.body.replaceChildren(...results.map((each) => this.row(each)));
    this.table.hidden = !results.length;
    this.none.hidden = results.length > 0;
  }

  nameOf(id) {
    const name = this.names.get(id);
    return name && name !== id ? name : id.length > SHOWN ? `${id.slice(0, SHOWN)}…` : id;
  }

  row({ project_id: project, api_key_id: key, ...counts }) {
    const numbers = [counts.num_model_requests, counts.num_failed_requests, counts.input_tokens, counts.output_tokens];
    const names = project === key ? ["–", key] : [project, key]; // a key of the settings has no project
    return h("tr", {}, names.map((id) => h("td", { title: id }, this.nameOf(id))), numbers.map((number) => h("td", { class: "to-right" }, count(number))));
  }
}

// Of each key once, whatever it was used for.
function together(results) {
  const found = new Map();
  for (const { project_id, api_key_id, num_model_requests = 0, num_failed_requests = 0, input_tokens = 0, output_tokens = 0 } of results) {
    const sum = found.get(api_key_id) ?? { project_id, api_key_id, num_model_requests: 0, num_failed_requests: 0, input_tokens: 0, output_tokens: 0 };
    for (const [name, value] of Object.entries({ num_model_requests, num_failed_requests, input_tokens, output_tokens })) sum[name] += value;
    found.set(api_key_id, sum);
  }
  return [...found.values()];
}
