// The models of the service, as it lists them: their defaults, abilities and context lengths, and how far a load is.

import { get, isAway } from "./api.js";
import { $, h, pause } from "./dom.js";
import { isLoading, loadingText, showShare } from "./loading.js";

const AWAY_MS = 2000;
const LOADING_MS = 500;
const STATES = { unloaded: " (not loaded)", failed: " (failed to load)" };

const stateOf = (model) => (isLoading(model) ? ` (${loadingText(model)})` : (STATES[model.status?.value] ?? ""));

export class Models {
  list = [];

  // `onchosen`: another one was. `onlist`: there is a newer list. `isAwaited`: an answer has not begun yet, so that its
  // model may begin to load.
  constructor({ onchosen, onlist, isAwaited }) {
    Object.assign(this, { onlist, isAwaited });
    this.picker = $("model");
    this.picker.onchange = () => {
      showShare($("loading"), this.find(this.picker.value));
      onchosen(this.picker.value);
    };
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
        this.show();
        this.onlist();
        if (this.list.some(isLoading) || this.isAwaited()) this.follow();
        return;
      } catch (error) {
        if (!isAway(error)) throw error;
        await pause(AWAY_MS);
      }
    }
  }

  // Options that are there stay: replacing them would close a list that is open.
  show() {
    const chosen = this.picker.value;
    const { options } = this.picker;
    this.list.forEach((model, place) => {
      if (options[place]?.value !== model.id) this.picker.add(h("option", { value: model.id }), place);
      const text = `${model.id}${stateOf(model)}`;
      if (options[place].text !== text) options[place].text = text;
    });
    options.length = this.list.length;
    this.choose(chosen);
  }

  // Until nothing is being loaded.
  follow() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load().catch(() => {}), LOADING_MS);
  }

  choose(id) {
    const found = this.find(id);
    this.picker.value = found?.id ?? "";
    if (found) showShare($("loading"), found);
  }

  // The one of that name, else the service's first: a model may be gone that a conversation was begun with.
  find(id) {
    return this.list.find((each) => each.id === id) ?? this.list[0];
  }
}
