// What the npm client makes of the service: one line of JSON for each thing it did. Run from where `openai` is installed.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "Write a story about a lighthouse." }];
const asked = { model, messages, temperature: 0, max_tokens: 12 };
const schema = {
  type: "object",
  properties: { sky: { enum: ["clear", "cloudy", "rainy"] }, is_cold: { type: "boolean" } },
  required: ["sky", "is_cold"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters: schema, strict: true } }];
const forced = { ...asked, max_tokens: 60, tools, tool_choice: "required" };
const tell = (what, value) => console.log(JSON.stringify({ what, value }));

const plain = await client.chat.completions.create(asked);
tell("plain", plain.choices[0].message.content);

const stream = await client.chat.completions.create({ ...asked, stream: true });
const pieces = [];
for await (const chunk of stream) pieces.push(chunk.choices[0]?.delta?.content ?? "");
tell("pieces", pieces);

const called = await client.chat.completions.create(forced);
tell("call", called.choices[0].message.tool_calls[0].function);
const helper = client.chat.completions.stream(forced);
tell("streamed call", (await helper.finalChatCompletion()).choices[0].message.tool_calls[0].function);

const format = { type: "json_schema", json_schema: { name: "weather", schema, strict: true } };
const parsed = await client.chat.completions.parse({ ...asked, max_tokens: 60, response_format: format });
tell("parsed", parsed.choices[0].message.parsed);

try {
  await client.chat.completions.create({ ...asked, model: "no-such-model" });
} catch (error) {
  tell("error", [error.constructor.name, error.status, error.code]);
}
