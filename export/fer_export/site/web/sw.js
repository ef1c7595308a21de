/* Keeps the site's own files, and only those, so that it opens without a network. Written by fer-export. */
// Several exports may lie under one origin; each clears its own.
const PREFIX = `fer-edge ${self.registration.scope} `;
const CACHE = PREFIX + "@VERSION@";
const FILES = @FILES@;

self.addEventListener("install", (event) => {
  // Past the browser's own cache: a file of the previous export must not enter this one's.
  const requests = FILES.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const old = (name) => name.startsWith(PREFIX) && name !== CACHE;
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter(old).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith(
    caches.open(CACHE).then(async (cache) => (await cache.match(event.request)) ?? fetch(event.request)),
  );
});
