// How a conversation is answered: model, system prompt, sampling. What is left empty is the model's own.

import { $, h } from "./dom.js";
import { read, write } from "./storage.js";
import { setTheme, theme, THEMES } from "./theme.js";

const FIELDS = ["instructions", "temperature", "top_p", "max_output_tokens", "effort"];

export class Settings {
  constructor(models) {
    this.models = models;
    this.dialog = $("settings");
    this.form = $("settings-form");
    this.form.oninput = () => this.keep();
    $("settings-reset").onclick = () => this.reset();
    const themes = $("theme");
    themes.append(...THEMES.map((name) => h("option", { value: name }, name[0].toUpperCase() + name.slice(1))));
    themes.value = theme();
    themes.onchange = () => setTheme(themes.value);
  }

  // Of another conversation; null: of the next new one.
  open(id) {
    this.id = id;
    this.values = read(this.name, {});
    this.models.choose(this.values.model ?? read("model"));
    this.fill();
  }

  get name() {
    return `settings:${this.id ?? "new"}`;
  }

  get model() {
    return this.models.find(this.values.model ?? read("model"));
  }

  chooseModel(id) {
    this.values.model = id;
    write("model", id);
    write(this.name, this.values);
    this.fill();
  }

  fill() {
    for (const name of FIELDS) this.form.elements[name].value = this.values[name] ?? "";
    const { sampling, max_model_len: limit } = this.model ?? {};
    for (const name of ["temperature", "top_p"]) this.form.elements[name].placeholder = sampling?.[name] ?? "";
    this.form.elements.max_output_tokens.placeholder = limit ? `up to ${limit}` : "as long as it gets";
    $("effort").hidden = !this.canThink;
  }

  get canSee() {
    return this.model?.capabilities?.includes("vision") ?? false;
  }

  get canThink() {
    return this.model?.capabilities?.includes("thinking") ?? false;
  }

  keep() {
    for (const name of FIELDS) {
      const field = this.form.elements[name];
      if (!field.validity.valid) continue;
      const value = field.type === "number" ? field.valueAsNumber : field.value;
      if (value === "" || Number.isNaN(value)) delete this.values[name];
      else this.values[name] = value;
    }
    write(this.name, this.values);
  }

  reset() {
    for (const name of FIELDS) delete this.values[name];
    write(this.name, this.values);
    this.fill();
  }

  show() {
    this.fill();
    this.dialog.showModal();
  }

  // Of a request for a response.
  get fields() {
    const { effort, model: _, ...fields } = this.values;
    return { model: this.model?.id, ...fields, ...(effort && this.canThink && { reasoning: { effort } }) };
  }
}
