// Times of the page in headless Chromium: CHROMIUM=... DIST=burn-var-web/dist node burn-var-web/test/measure.mjs
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { chromium } from "playwright-core";
import { serve } from "./server.mjs";

const { CHROMIUM, DIST } = process.env;
const ROUNDS = 11;
const folder = mkdtempSync(join(tmpdir(), "burn-var-web-"));
const site = await serve(DIST);
const launch = (profile) => chromium.launchPersistentContext(join(folder, profile), { executablePath: CHROMIUM, headless: true, args: ["--no-sandbox", "--disable-gpu"] });
const done = (page) => page.waitForFunction(() => document.documentElement.dataset.state === "done", null, { timeout: 300_000 });
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Opens the page and returns milliseconds until the first image is complete. */
async function first(context) {
  const page = await context.newPage();
  await page.goto(`${site.url}#class=9&seed=1`);
  await done(page);
  const facts = await page.textContent("#facts");
  return { page, facts: facts.match(/Loaded in(.*?)Last image/)?.[1] };
}

/** Returns the time of one job in the worker, in milliseconds. */
async function again(page, count, seed) {
  await page.evaluate(([count, seed]) => {
    document.getElementById("count").value = count;
    document.getElementById("seed").value = seed;
    window.from = performance.now();
    document.getElementById("generate").click();
  }, [String(count), seed]);
  await done(page);
  return page.evaluate(() => performance.now() - window.from);
}

let context = await launch("profile");
const cold = await first(context);
const warm = {};
for (const count of [1, 16]) {
  const times = [];
  for (let seed = 0; seed < (count === 1 ? ROUNDS : 3); seed++) times.push(await again(cold.page, count, seed));
  warm[count] = { median: Math.round(median(times)), least: Math.round(times[0]) };
}
await context.close();
context = await launch("profile");
const stored = await first(context);
await context.close();
site.server.closeAllConnections();
site.server.close();
rmSync(folder, { recursive: true, force: true });

const size = (path) => {
  const bytes = readFileSync(join(DIST, path));
  return { bytes: bytes.length, gzip: gzipSync(bytes, { level: 9 }).length, brotli: brotliCompressSync(bytes).length };
};
const code = ["pkg/burn_var_web_bg.wasm", "pkg/burn_var_web.js", "index.html", "style.css", ...readdirSync(join(DIST, "js")).map((name) => `js/${name}`)];
const sizes = Object.fromEntries(code.map((path) => [path, size(path)]));
const all = Object.values(sizes).reduce((sum, { gzip, brotli }) => ({ gzip: sum.gzip + gzip, brotli: sum.brotli + brotli }), { gzip: 0, brotli: 0 });
console.log(JSON.stringify({ cold: cold.facts, stored: stored.facts, warm, sizes, all }, null, 1));
