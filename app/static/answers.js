// Answers, as events of the Responses API: asked for by POST, resumed at an event, stopped.
//
// A stored answer is written in the background, whether or not this page reads it: a lost connection or a reload costs
// nothing. The idempotency key makes a question that is sent again the same question.

import { ApiError, api, isAway, newId, post, send } from "./api.js";
import { pause } from "./dom.js";
import { events } from "./events.js";

const RETRY_MS = 1000;
const ENDS = ["response.completed", "response.incomplete", "response.failed"];

// Reads `node`'s answer to its end. `report.changed()`, `.accepted()`, `.lost()` and `.found()` are called as it goes.
export async function ask(node, body, signal, report) {
  const headers = { "Idempotency-Key": newId() };
  for (;;) {
    const response = await persistently(() => send("v1/responses", body, { signal, headers }), report, body.background);
    if ((await read(node, response, report, body.background)) || !body.background) return end(node);
    if (node.answer.id) return resume(node, signal, report);
    await pause(RETRY_MS);
  }
}

export async function resume(node, signal, report) {
  for (;;) {
    const after = node.sequence === undefined ? "" : `&starting_after=${node.sequence}`;
    const path = `v1/responses/${node.answer.id}?stream=true${after}`;
    const response = await persistently(() => api(path, { signal }), report, true);
    if (await read(node, response, report, true)) return end(node);
    await pause(RETRY_MS);
  }
}

// Others were asked for on other routes.
export const isResponse = (node) => node.answer.id.startsWith("resp_");

export const stop = (node) =>
  post(isResponse(node) ? `v1/responses/${node.answer.id}/cancel` : `chat/stop/${node.answer.id}`, {});

async function persistently(request, report, isRepeatable) {
  for (;;) {
    try {
      const response = await request();
      report.found();
      return response;
    } catch (error) {
      if (!isRepeatable || !isAway(error)) throw error;
      report.lost(error);
      await pause(RETRY_MS);
      report.signal.throwIfAborted();
    }
  }
}

// Whether it came to its end; false where the connection was lost before.
async function read(node, response, report, isResumable) {
  try {
    for await (const event of events(response.body)) {
      const isNew = !node.answer?.id;
      if (take(node, event)) return true;
      if (isNew && node.answer?.id) report.accepted();
      report.changed();
    }
  } catch (error) {
    if (!(error instanceof TypeError) || !isResumable) throw error;
    report.lost(error);
  }
  return false;
}

function end(node) {
  node.endedAt ??= performance.now();
  if (node.isRunning) node.answer.status = "incomplete"; // it cannot be resumed
}

// One event; true when it was the last one.
export function take(node, event) {
  if (event.sequence_number !== undefined) node.sequence = event.sequence_number;
  const item = node.items[event.output_index];
  switch (event.type) {
    case "response.output_item.added":
      node.items[event.output_index] = event.item;
      if (event.item.type === "reasoning") node.thoughtFrom = performance.now();
      break;
    case "response.content_part.added":
      item.content[event.content_index] = event.part;
      break;
    case "response.output_text.delta":
    case "response.reasoning_text.delta":
      node.firstAt ??= performance.now();
      item.content[event.content_index].text += event.delta;
      break;
    case "response.function_call_arguments.delta":
      item.arguments += event.delta;
      break;
    case "response.custom_tool_call_input.delta":
      item.input += event.delta;
      break;
    case "response.output_item.done":
      node.items[event.output_index] = event.item;
      if (event.item.type === "reasoning" && node.thoughtFrom) node.thoughtMs = performance.now() - node.thoughtFrom;
      break;
    case "error":
      throw new ApiError(event.message, undefined, event.code);
    default:
      if (event.response) return takeResponse(node, event);
  }
  return false;
}

function takeResponse(node, { type, response }) {
  const isEnd = ENDS.includes(type);
  node.answer = {
    ...node.answer,
    id: response.id,
    model: response.model,
    status: response.status,
    usage: response.usage,
    error: response.error,
    finish_reason: response.incomplete_details?.reason === "max_output_tokens" ? "length" : null,
  };
  if (isEnd && response.output.length) node.items = response.output;
  return isEnd;
}
