// The models of the service, as it lists them: their defaults, abilities and context lengths.

import { get, isAway } from "./api.js";
import { $, h, pause } from "./dom.js";

export class Models {
  list = [];

  constructor(onchange) {
    this.picker = $("model");
    this.picker.onchange = () => onchange(this.picker.value);
  }

  load() {
    return (this.loading ??= this.read().finally(() => (this.loading = null)));
  }

  // Waits for a service that is starting.
  async read() {
    for (;;) {
      try {
        const { data } = await get("v1/models");
        this.list = data.filter(({ sampling }) => sampling);
        this.picker.replaceChildren(...this.list.map(({ id }) => h("option", { value: id }, id)));
        return;
      } catch (error) {
        if (!isAway(error)) throw error;
        await pause(2000);
      }
    }
  }

  choose(id) {
    this.picker.value = this.find(id)?.id ?? "";
  }

  // The one of that name, else the service's first: a model may be gone that a conversation was begun with.
  find(id) {
    return this.list.find((each) => each.id === id) ?? this.list[0];
  }
}
