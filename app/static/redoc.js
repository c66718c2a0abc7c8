// ReDoc over the service's own document.

import { get } from "./api.js";

globalThis.Redoc.init(await get("openapi.json"), { disableSearch: false, hideDownloadButtons: true }, document.getElementById("reference"));
