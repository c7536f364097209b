// The page in a real browser: `test.sh` runs this file. Images are compared with those of the command, pixel by pixel.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { run, sample } from "./command.mjs";
import { serve } from "./server.mjs";

const { CHROMIUM, DIST, MODEL, SCREENSHOTS } = process.env;
// A software browser on a busy machine: a time-out is a failure, not a measurement.
const TIMEOUT = 120_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

let folder;
let site;
let context;
const outside = [];

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "burn-var-web-"));
  site = await serve(DIST);
  context = await chromium.launchPersistentContext(join(folder, "profile"), { executablePath: CHROMIUM, headless: true, args: FLAGS, acceptDownloads: true });
  context.setDefaultTimeout(TIMEOUT);
  context.on("request", (request) => { if (![site.url, "blob:", "data:"].some((start) => request.url().startsWith(start))) outside.push(request.url()); });
});

after(async () => {
  await context?.close();
  site?.server.closeAllConnections();
  site?.server.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

const state = (page, wanted) => page.waitForFunction((wanted) => document.documentElement.dataset.state === wanted, wanted);

/** Opens the page at an address and waits for the end of the first job. */
async function open(hash = "", end = "done") {
  const page = await context.newPage();
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(site.url + hash);
  await state(page, end);
  return page;
}

/** Runs an action that starts a job, and waits for its end. */
async function job(page, action, end = "done") {
  const before = await page.evaluate(() => Number(document.documentElement.dataset.job));
  await action();
  await page.waitForFunction(({ before, end }) => {
    const { job, state } = document.documentElement.dataset;
    return Number(job) > before && state === end;
  }, { before, end });
}

/** Returns red, green and blue bytes of each image of a run. */
async function images(page, number = 0) {
  const pixels = await page.evaluate((number) => {
    const run = document.querySelectorAll(".run")[number];
    return [...run.querySelectorAll(".images canvas")].map((canvas) => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]);
  }, number);
  return pixels.map((data) => Uint8Array.from(data.filter((_, at) => at % 4 !== 3)));
}

const decode = (page, file) => page.evaluate(async (base64) => {
  const image = Object.assign(new Image(), { src: `data:image/png;base64,${base64}` });
  await image.decode();
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, image.width, image.height).data];
}, readFileSync(file, "base64")).then((data) => Uint8Array.from(data.filter((_, at) => at % 4 !== 3)));

/** Says how two images differ. */
function difference(a, b) {
  assert.equal(a.length, b.length);
  const steps = a.map((value, at) => Math.abs(value - b[at]));
  return { most: Math.max(...steps), pixels: steps.filter((step, at) => at % 3 === 0 && step > 0).length };
}

function same(found, expected, what) {
  assert.equal(found.length, expected.length, what);
  found.forEach((image, at) => {
    const { most, pixels } = difference(image, expected[at]);
    assert.equal(most, 0, `${what}, image ${at}: ${pixels} pixels differ, by at most ${most}`);
  });
}

const errorText = (page) => page.textContent("#error");
const set = (page, id, value) => page.evaluate(([id, value]) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value;
  else control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
}, [id, value]);

test("images are those of the command", async () => {
  const page = await open("#class=9&seed=7&count=4");
  same(await images(page), sample(folder, "--class", "9", "--seed", "7", "--count", "4"), "the model's own settings");
  assert.equal(await page.locator(".growth li").count(), 6, "the image after each scale");
  assert.match(await page.textContent(".run figcaption"), /^Ankle boot, seed 7: /);
  assert.match(await page.textContent("#facts"), /WebAssembly.*MB in use/);
  await page.close();
});

test("a link shows the same image, with every setting", async () => {
  const page = await open("#class=3&seed=11");
  await page.click("#sampling summary");
  for (const [id, value] of Object.entries({ cfg: 1.5, temperature: 0.9, "top-k": 200, "top-p": 0.95, injector: false })) await set(page, id, value);
  await job(page, () => page.click("#generate"));
  const address = new URL(page.url());
  assert.equal(address.hash, "#class=3&seed=11&cfg=1.5&temperature=0.9&top-k=200&top-p=0.95&injector=off");
  const shown = await images(page);
  await page.close();
  const again = await open(address.hash);
  same(await images(again), shown, "the link");
  const flags = ["--cfg", "1.5", "--temperature", "0.9", "--top-k", "200", "--top-p", "0.95", "--no-aid"];
  same(shown, sample(folder, "--class", "3", "--seed", "11", "--count", "1", ...flags), "the command with these settings");
  await job(again, () => again.click("#reset"));
  assert.equal(new URL(again.url()).hash, "#class=3&seed=11", "reset");
  await job(again, () => again.evaluate(() => { location.hash = "#class=none&seed=2"; }));
  assert.match(await again.textContent(".run figcaption"), /^no class, seed 2/);
  await again.close();
});

test("guidance and none are shown side by side", async () => {
  const page = await open("#class=8&seed=5&compare=on");
  assert.equal(await page.locator(".run").count(), 2);
  same(await images(page, 0), sample(folder, "--class", "8", "--seed", "5", "--count", "1"), "guided");
  same(await images(page, 1), sample(folder, "--class", "8", "--seed", "5", "--count", "1", "--cfg", "0", "--no-aid"), "without guidance");
  await page.close();
});

test("a job stops between scales, and another one starts", async () => {
  const page = await open("#class=1&seed=1");
  await set(page, "count", "16");
  // The button is pressed as soon as the first scale is shown.
  await page.evaluate(() => {
    const observer = new MutationObserver(() => {
      if (document.querySelectorAll(".growth li").length !== 1) return;
      observer.disconnect();
      document.getElementById("stop").click();
    });
    observer.observe(document.getElementById("runs"), { childList: true, subtree: true });
  });
  await job(page, () => page.click("#generate"), "stopped");
  const scales = await page.locator(".growth li").count();
  assert.ok(scales >= 1 && scales < 6, `stopped after ${scales} scales`);
  assert.equal(await page.textContent("#status"), "Stopped.");
  assert.ok(await page.isDisabled("#stop"));
  await set(page, "count", "1");
  await job(page, () => page.click("#generate"));
  assert.equal(await page.locator(".growth li").count(), 6);
  await page.close();
});

test("a download is the image, and the command edits it as the page does", async () => {
  const page = await open("#class=4&seed=3");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  assert.equal(download.suggestedFilename(), "coat-seed-3.png");
  const png = join(folder, "coat.png");
  await download.saveAs(png);
  same([await decode(page, png)], await images(page), "the file");

  const edited = async (name, ...flags) => {
    const out = join(folder, name);
    run("edit", [png], ...flags, "--class", "4", "--seed", "5", "--count", "1", "--folder", out, "--out", join(folder, `${name}.png`));
    return [await decode(page, join(out, readdirSync(out)[0]))];
  };
  const next = await open("#class=4&seed=5");
  await next.setInputFiles("#image-file", png);
  await next.waitForFunction(() => document.querySelector("input[value=redraw]").checked);
  await next.click("#generate");
  assert.match(await errorText(next), /Paint over the part/, "nothing is painted");
  await next.click("[data-half=top]");
  await job(next, () => next.click("#generate"));
  same(await images(next), await edited("redrawn", "--redraw", "0,0,32,16"), "the upper half anew");

  await next.check("input[value=sketch]", { force: true });
  await next.setInputFiles("#image-file", png);
  await set(next, "complete", "4");
  await job(next, () => next.click("#generate"));
  same(await images(next), await edited("completed", "--complete", "4"), "a sketch completed");
  await next.close();
  await page.close();
});

test("a mask is painted with the pointer and with the keyboard", async () => {
  const page = await open("#class=4&seed=3");
  await page.check("input[value=redraw]", { force: true });
  const marked = () => page.evaluate(() => {
    const canvas = document.getElementById("paint");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4) if (data[at] !== data[at + 2]) count++;
    return count;
  });
  assert.equal(await marked(), 0);
  const box = await page.locator("#paint").boundingBox();
  await page.mouse.move(box.x + box.width * 0.2, box.y + box.height * 0.3);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.8, box.y + box.height * 0.3, { steps: 5 });
  await page.mouse.up();
  const painted = await marked();
  assert.ok(painted > 60, `${painted} pixels by the pointer`);
  await page.click("#clear-paint");
  await page.focus("#paint");
  for (const key of ["ArrowDown", "ArrowDown", "Space", "ArrowRight", "ArrowRight", "Space"]) await page.keyboard.press(key);
  const byKeys = await marked();
  assert.ok(byKeys > 10, `${byKeys} pixels by the keyboard`);
  await job(page, () => page.click("#generate"));
  await page.close();
});

test("the model is stored, and deleted on demand", async () => {
  await (await open()).close();
  const fetched = () => site.seen.filter((path) => path.endsWith(".safetensors")).length;
  site.seen.length = 0;
  const page = await open();
  assert.equal(fetched(), 0, "the second visit downloads no weights");
  await page.click("#model summary");
  assert.match(await page.textContent("#facts"), /this browser's store/);
  await page.click("#clear-files");
  await state(page, "deleted");
  await page.close();
  const again = await open();
  assert.equal(fetched(), 3, "after deleting");
  await again.close();
});

test("a model that cannot be used gets its message", async () => {
  const path = "/model/transformer.safetensors";
  const broken = async (answer, expected) => {
    const page = await open();
    await page.click("#model summary");
    await page.click("#clear-files");
    await state(page, "deleted");
    site.overrides.set(path, answer);
    await page.reload();
    await state(page, "failed");
    assert.match(await errorText(page), expected);
    site.overrides.delete(path);
    await page.reload();
    await state(page, "done");
    await page.close();
  };
  const bytes = readFileSync(join(MODEL, "transformer.safetensors"));
  await broken((_, response) => response.writeHead(200).end(bytes.subarray(0, 1000)), /transformer\.safetensors is not complete: it has 1000 bytes, expected \d+/);
  const changed = Buffer.from(bytes);
  changed[changed.length - 1] ^= 1;
  await broken((_, response) => response.writeHead(200).end(changed), /transformer\.safetensors is damaged: its checksum/);
  await broken((_, response) => response.writeHead(503).end(), /answers 503/);
});

test("models of one's own are opened from files and addresses", async () => {
  const page = await open();
  const file = (name) => join(MODEL, `${name}.safetensors`);
  await job(page, () => page.setInputFiles("#model-files", [file("tokenizer"), file("transformer")]));
  assert.ok(await page.isDisabled("#injector"), "there is no injector");
  assert.match(await page.textContent("#facts"), /this computer/);
  same(await images(page), sample(folder, "--class", "9", "--seed", "1", "--count", "1", "--no-aid"), "own files");

  const fails = async (files, expected) => {
    await page.setInputFiles("#model-files", files);
    await state(page, "failed");
    assert.match(await errorText(page), expected);
  };
  await fails([file("tokenizer")], /`transformer among the files` is missing/);
  await fails([file("tokenizer"), file("transformer"), file("classifier")], /classifier\.safetensors/);
  const cut = join(folder, "cut.safetensors");
  writeFileSync(cut, readFileSync(file("transformer")).subarray(0, 100_000));
  await fails([file("tokenizer"), cut], /cut\.safetensors.*is the download complete/s);
  const text = join(folder, "text.safetensors");
  writeFileSync(text, "not a checkpoint at all");
  await fails([file("tokenizer"), text], /text\.safetensors/);
  // The model from before still works.
  await job(page, () => page.click("#generate"));

  await page.click("#model summary");
  await page.fill("#urls", `${site.url}model/tokenizer.safetensors\n${site.url}model/nothing.safetensors`);
  await page.click("#open-urls");
  await state(page, "failed");
  assert.match(await errorText(page), /nothing\.safetensors cannot be fetched.*404/);
  await page.fill("#urls", ["tokenizer", "transformer", "injector"].map((name) => `${site.url}model/${name}.safetensors`).join("\n"));
  await job(page, () => page.click("#open-urls"));
  assert.ok(await page.isEnabled("#injector"));
  await job(page, () => page.click("#own-model"));
  await page.close();
});

test("settings that the form refuses are not sent", async () => {
  const page = await open();
  await set(page, "temperature", "0");
  await page.evaluate(() => { document.getElementById("sampling").open = true; });
  const before = await page.evaluate(() => document.documentElement.dataset.job);
  await page.click("#generate");
  assert.equal(await page.evaluate(() => document.documentElement.dataset.job), before);
  assert.equal(await page.evaluate(() => document.activeElement.id), "temperature", "the field is shown");
  await page.close();
});

test("every control has a name, keys suffice, and a phone shows the whole page", async () => {
  const page = await open();
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, select, textarea, canvas, progress")]
    .filter((element) => element.type !== "file" && !element.closest(".growth") && !element.getAttribute("aria-label") && !element.labels?.length && !element.textContent.trim())
    .map((element) => element.outerHTML));
  assert.deepEqual(nameless, []);
  await page.focus("#seed");
  await page.keyboard.press("ControlOrMeta+A");
  await page.keyboard.type("12");
  await job(page, () => page.keyboard.press("Enter"));
  assert.match(page.url(), /seed=12/);
  for (const [width, height] of [[320, 640], [390, 844]]) {
    await page.setViewportSize({ width, height });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(overflow <= 0, `${overflow} pixels too wide at ${width}`);
  }
  await page.close();
});

test("nothing is fetched from elsewhere", () => assert.deepEqual(outside, []));

test("screenshots", { skip: !SCREENSHOTS }, async () => {
  for (const [name, scheme, width, hash] of [["web", "light", 1040, "#class=9&seed=7&count=4"], ["web-dark", "dark", 1040, "#class=4&seed=3&compare=on"], ["web-phone", "light", 390, "#class=9&seed=7"]]) {
    const page = await context.newPage();
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 760 });
    await page.goto(site.url + hash);
    await state(page, "done");
    await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`) });
    await page.close();
  }
});
