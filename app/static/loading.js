// How far the load of a model is, as the service reports it: a stage, and of some stages how much of it is done.

const STAGES = {
  fetching: "downloading",
  waiting: "waiting for another model",
  reading: "reading weights",
  quantizing: "quantising weights",
  compiling: "compiling kernels",
  packing: "packing weights",
  checking: "checking its answers",
  warming_up: "warming up",
};

export const isLoading = (model) => model?.status?.value === "loading";

export const stageOf = (model) => STAGES[model.status.progress?.stage] ?? "about to begin";

// From 0 to 1; null where the stage has no measure.
export function shareOf({ status: { progress } }) {
  return progress?.total ? progress.done / progress.total : null;
}

export function loadingText(model) {
  const share = shareOf(model);
  return share === null ? stageOf(model) : `${stageOf(model)}, ${Math.floor(100 * share)} %`;
}

// A <progress> element, without a value where there is no measure.
export function showShare(bar, model) {
  bar.hidden = !isLoading(model);
  if (bar.hidden) return;
  const share = shareOf(model);
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
  bar.setAttribute("aria-label", `Loading ${model.id}: ${stageOf(model)}`);
}
