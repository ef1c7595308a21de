// Ask a running fer-serve for the faces in images, all in one request. Node 20 or later, without packages.
//
//   node client.mjs photo.jpg other.png
//   FER_SERVE_URL=https://fer.example FER_SERVE_TOKEN=... node client.mjs photo.jpg

import { openAsBlob } from "node:fs";
import { basename } from "node:path";
import { setTimeout } from "node:timers/promises";

const url = process.env.FER_SERVE_URL ?? "http://127.0.0.1:8000";
const headers = process.env.FER_SERVE_TOKEN ? { Authorization: `Bearer ${process.env.FER_SERVE_TOKEN}` } : {};

const form = new FormData();
for (const path of process.argv.slice(2)) {
  form.append("image", await openAsBlob(path), basename(path));
}

let response;
for (let attempt = 0; attempt < 5; attempt++) {
  response = await fetch(`${url}/v1/images`, { method: "POST", headers, body: form });
  if (response.status !== 503) break;
  await setTimeout(1000 * Number(response.headers.get("Retry-After") ?? 1)); // the service is full
}

const answer = await response.json();
if (answer.images === undefined) {
  console.error(`${response.status}: ${answer.error}`);
  process.exit(1);
}
for (const { path, error, faces } of answer.images) {
  console.log(`${path}: ${error ?? (faces.length ? "" : "no face")}`);
  for (const { expression, confidence, box } of faces) {
    console.log(`  ${expression} ${Math.round(100 * confidence)}% at [${box.join(", ")}]`);
  }
}
process.exit(answer.images.some(({ error }) => error !== null) ? 1 : 0);
