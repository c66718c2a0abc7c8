// Swagger UI over the service's own document, with the key that was asked for on every request it makes.

import { get, key } from "./api.js";

const authorised = (request) => {
  const used = key();
  if (used && !request.headers.Authorization) request.headers.Authorization = `Bearer ${used}`;
  return request;
};

globalThis.SwaggerUIBundle({
  spec: await get("openapi.json"),
  dom_id: "#reference",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // a server elsewhere
  requestInterceptor: authorised,
});
