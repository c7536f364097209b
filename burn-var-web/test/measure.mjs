// Times and sizes of the page: CHROMIUM=... DIST=burn-var-web/dist node burn-var-web/test/measure.mjs
//
// Waiting times are those of headless Chromium. On a machine with other work they say little, so the module also runs here,
// and the processor time of an image is measured.
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

/** Returns the processor time of one image in Node, in milliseconds: of the first, and the median of the next. */
async function processor() {
  const code = readFileSync(join(DIST, "pkg/burn_var_web.js")).toString("base64");
  const { default: init, Model } = await import(`data:text/javascript;base64,${code}`);
  await init({ module_or_path: readFileSync(join(DIST, "pkg/burn_var_web_bg.wasm")) });
  const { files } = JSON.parse(readFileSync(join(DIST, "model/model.json")));
  const model = new Model(files.map(({ name, size }) => {
    const bytes = readFileSync(join(DIST, "model", name));
    return { name, size, read: (start, end) => new Uint8Array(bytes.subarray(start, end)) };
  }));
  const times = [];
  for (let seed = 0; seed < ROUNDS; seed++) {
    const before = process.cpuUsage();
    await model.generate(JSON.stringify({ class: 9, count: 1, seed }), undefined, 0, new Uint8Array(), async () => true);
    const { user, system } = process.cpuUsage(before);
    times.push(Math.round((user + system) / 1000));
  }
  return { first: times[0], next: median(times.slice(1)) };
}

const cpu = await processor();
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
console.log(JSON.stringify({ cpu, cold: cold.facts, stored: stored.facts, warm, sizes, all }, null, 1));
