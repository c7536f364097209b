// Files of a model, kept in the browser's Cache API: the second visit downloads nothing.
const STORE = "burn-var";

const store = async () => {
  // Only pages of https and of this computer have it.
  if (!globalThis.caches) return null;
  return caches.open(STORE).catch(() => null);
};

/** Deletes all stored files; resolves to false if there were none. */
export const deleteStored = async () => (globalThis.caches ? caches.delete(STORE) : false);

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function download(url, name, size, progress) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error(`${name} cannot be fetched from ${url}: there is no connection, or that server does not let other pages read it (CORS). Download the file and open it here.`);
  }
  if (!response.ok) throw new Error(`${name} cannot be fetched from ${url}: the server answers ${response.status} ${response.statusText}`.trim());
  const total = size ?? (Number(response.headers.get("content-length")) || 0);
  const parts = [];
  let done = 0;
  const reader = response.body.getReader();
  for (;;) {
    const part = await reader.read().catch(() => {
      throw new Error(`The download of ${name} ended early, after ${done} bytes. Load the page again.`);
    });
    if (part.done) break;
    parts.push(part.value);
    done += part.value.length;
    progress(name, done, total);
  }
  return new Blob(parts);
}

/**
 * Returns a file, from the store if they are there. `size` and `sha256`, where known, are checked.
 * `progress(name, done, total)` is called on the way; `total` is 0 if the server does not say it.
 */
export async function load({ url, name, size, sha256 }, progress) {
  const cache = await store();
  // The checksum in the key: a new model under the same name is another file.
  const key = new URL(sha256 ? `${url}?${sha256.slice(0, 16)}` : url, location.href).href;
  const stored = await cache?.match(key);
  if (stored) {
    const blob = await stored.blob();
    progress(name, blob.size, blob.size);
    return { blob, stored: true };
  }
  const blob = await download(key, name, size, progress);
  if (size !== undefined && blob.size !== size) {
    throw new Error(`${name} is not complete: it has ${blob.size} bytes, expected ${size}. Load the page again.`);
  }
  if (sha256 && globalThis.crypto?.subtle && hex(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer())) !== sha256) {
    throw new Error(`${name} is damaged: its checksum is not the one in model.json. Load the page again, or build it anew.`);
  }
  // A full disk must not keep the page from working.
  await cache?.put(key, new Response(blob)).catch(() => {});
  return { blob, stored: false };
}
