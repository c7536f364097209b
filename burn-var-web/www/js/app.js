// The page: controls, images, and messages to and from the worker that runs the model.
import { Painter } from "./paint.js";
import { address, fill, fit, plain, read, showCfg } from "./settings.js";

const byId = (id) => document.getElementById(id);
const form = byId("form");
const painter = new Painter();
const GROWTH_MOST = 12;

let worker;
let model;
/** What was said when the model was loaded. */
let facts = {};
let job = 0;
/** The images of each run of the last job, and its captions. */
let runs = [];
let firstImage = null;
let busy = false;

const mode = () => form.elements.mode.value;
const seconds = (ms) => (ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const bytes = (count) => (count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`);
const say = (text) => { byId("status").textContent = text; };

function fail(message) {
  byId("error").textContent = message ?? "";
  byId("error").hidden = !message;
}

function setBusy(now) {
  busy = now;
  byId("stop").disabled = !now;
  byId("results").setAttribute("aria-busy", String(now));
}

/* The model */

function startWorker() {
  worker?.terminate();
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => on[data.type](data);
  worker.onerror = (event) => fail(`The worker cannot start: ${event.message ?? "its files cannot be loaded"}. Is the page's folder complete? burn-var-web/build.sh makes it.`);
}

const arriving = new Map();
function loadModel(source) {
  arriving.clear();
  fail();
  byId("progress").removeAttribute("value");
  byId("progress-text").textContent = "Loading the model";
  byId("loading").hidden = false;
  byId("generate").disabled = true;
  settle("loading");
  worker.postMessage({ type: "load", ...source });
  byId("own-model").hidden = !(source.files || source.urls);
}

function showFacts({ memory, last } = {}) {
  if (memory) facts.memory = memory;
  if (last) facts.last = last;
  const { width, height } = { height: model.shape[1], width: model.shape[2] };
  const entries = {
    Model: `${(model.weights / 1e6).toFixed(1)} million weights, ${width}x${height} pixels, ${model.classes.length} classes`,
    Scales: model.scales.length > 20 ? `${model.scales.length}` : model.scales.map(([h, w]) => `${h}x${w}`).join(", "),
    Files: facts.files.map(({ name, size }) => `${name} ${bytes(size)}`).join(", "),
    "Loaded in": `${seconds(facts.fetchMs)} from ${facts.from}, ${seconds(facts.buildMs)} to build`,
    "First image": facts.first ? `${seconds(facts.first)} after the page was opened` : "",
    "Last image": facts.last ?? "",
    Device: "CPU: one thread of this computer, WebAssembly with 128-bit SIMD, single precision",
    Memory: `${bytes(facts.memory)} in use, of at most 4.3 GB`,
  };
  byId("facts").replaceChildren(...Object.entries(entries).filter(([, text]) => text).flatMap(([name, text]) => {
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, value.textContent] = [name, text];
    return [term, value];
  }));
}

/* Images */

function figure(caption, count) {
  const element = document.createElement("figure");
  element.className = "run";
  const title = document.createElement("figcaption");
  title.textContent = caption;
  const images = document.createElement("div");
  images.className = "images";
  images.dataset.count = count;
  const growth = document.createElement("ol");
  growth.className = "growth";
  growth.setAttribute("aria-label", "The first image after each scale");
  const canvases = Array.from({ length: count }, (_, at) => {
    const canvas = document.createElement("canvas");
    [canvas.height, canvas.width] = model.shape.slice(1);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Image ${at + 1} of ${count}: not generated yet`);
    return canvas;
  });
  images.append(...canvases);
  element.append(title, images, growth);
  return { element, canvases, growth, caption, title, data: [] };
}

function stageName(number) {
  if (model.scales.length !== model.stages) return `row ${number + 1}`;
  const [height, width] = model.scales[number];
  return `${height}x${width}`;
}

function thumbnail(run, number, image) {
  const step = Math.ceil(model.stages / GROWTH_MOST);
  if (number % step && number !== model.stages - 1) return;
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = model.shape.slice(1);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const item = document.createElement("li");
  item.append(canvas, stageName(number));
  run.growth.append(item);
}

function subject(wanted) {
  const name = wanted.class === null ? "no class" : model.classes[wanted.class];
  return `${name}, seed ${wanted.seed}`;
}

/** Starts a job: one run, or two with and without guidance. */
function generate() {
  if (!model || !form.reportValidity()) return;
  fail();
  const wanted = read();
  const requests = [{ wanted, caption: subject(wanted) }];
  const what = mode();
  let canvas;
  if (what !== "generate") {
    canvas = painter.canvas;
    if (what === "sketch") wanted.complete = Number(byId("complete").value);
    else if (!painter.isMarked) return fail("Paint over the part of the image to redraw first, or select a half.");
  } else {
    history.replaceState(null, "", address(model));
  }
  if (byId("compare").checked) {
    requests[0].caption += ", guided";
    requests.push({ wanted: plain(wanted), caption: `${subject(wanted)}, without guidance` });
  }
  job += 1;
  runs = requests.map(({ wanted, caption }) => ({ ...figure(caption, wanted.count), wanted }));
  byId("runs").replaceChildren(...runs.map((run) => run.element));
  byId("download").disabled = byId("link").disabled = true;
  setBusy(true);
  settle("busy");
  say("Generating");
  worker.postMessage({ type: "generate", job, runs: requests.map(({ wanted }) => wanted), canvas });
}

function stop() {
  if (busy) worker.postMessage({ type: "stop" });
}

/** Marks the page for tests and other scripts. */
function settle(state) {
  document.documentElement.dataset.state = state;
  document.documentElement.dataset.job = job;
}

const on = {
  progress({ name, done, total }) {
    arriving.set(name, { done, total });
    const sum = (key) => [...arriving.values()].reduce((all, file) => all + file[key], 0);
    const [done_, total_] = [sum("done"), sum("total")];
    if (total_ >= done_ && total_ > 0) byId("progress").value = done_ / total_;
    byId("progress-text").textContent = `Loading the model: ${bytes(done_)}${total_ ? ` of ${bytes(total_)}` : ""}`;
  },

  ready({ model: loaded, ...rest }) {
    const again = model !== undefined;
    model = loaded;
    facts = { ...rest, first: again ? null : facts.first };
    byId("loading").hidden = true;
    fit(model);
    fill(model, again ? "" : location.hash);
    painter.resize(model.shape[2], model.shape[1]);
    showComplete();
    showFacts();
    say("The model is ready.");
    settle("ready");
    form.elements.mode.value = "generate";
    setMode();
    generate();
  },

  stage({ job: of, run: at, number, images, ms }) {
    if (of !== job) return;
    const run = runs[at];
    const [, height, width] = model.shape;
    run.data = images.map((image) => new ImageData(image, width, height));
    run.data.forEach((image, i) => {
      run.canvases[i].getContext("2d").putImageData(image, 0, 0);
      const last = number + 1 === model.stages;
      run.canvases[i].setAttribute("aria-label", `${run.caption}, image ${i + 1} of ${run.canvases.length}${last ? "" : `, stage ${number + 1} of ${model.stages}`}`);
    });
    thumbnail(run, number, run.data[0]);
    if (number + 1 < model.stages) say(`Stage ${number + 1} of ${model.stages}, ${stageName(number)}: ${seconds(ms)}`);
  },

  finished({ job: of, run: at, ms }) {
    if (of !== job) return;
    const first = facts.first === undefined;
    if (first) facts.first = performance.now();
    const count = runs[at].canvases.length;
    showFacts({ last: `${seconds(ms)} for ${count === 1 ? "one image" : `${count} images`}, previews included` });
    runs[at].title.textContent = `${runs[at].caption}: ${seconds(ms)}`;
  },

  done({ job: of, finished, memory }) {
    if (of !== job) return;
    setBusy(false);
    showFacts({ memory });
    const shown = runs.some((run) => run.data.length);
    byId("download").disabled = !shown;
    byId("link").disabled = mode() !== "generate";
    say(finished ? `Done. ${facts.last}.` : "Stopped.");
    settle(finished ? "done" : "stopped");
  },

  failed({ of, job: at, message, fatal }) {
    if (of === "generate" && at !== job) return;
    setBusy(false);
    byId("loading").hidden = true;
    byId("generate").disabled = !model;
    fail(message);
    say("");
    settle("failed");
    if (fatal) {
      byId("generate").disabled = true;
      model = undefined;
      byId("error").append("\n", button("Start again", () => { startWorker(); loadModel({}); }));
    }
  },

  deleted({ any }) {
    say(any ? "The stored files are deleted. The next visit downloads the model again." : "No files are stored.");
    settle("deleted");
  },
};

function button(text, onclick) {
  return Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick });
}

/* Controls */

function setMode() {
  const what = mode();
  byId("painter").hidden = what === "generate";
  byId("generate").textContent = { generate: "Generate", redraw: "Redraw", sketch: "Complete" }[what];
  if (what === "generate") return;
  painter.mode = what;
  if (what === "redraw" && runs[0]?.data.length) painter.image = runs[0].data[0];
  if (what === "sketch") painter.clear();
}

function showComplete() {
  const at = Math.min(Number(byId("complete").value), Math.max(1, model.scales.length - 1));
  byId("complete-out").textContent = `${at} of ${model.scales.length}, to ${model.scales[at - 1].join("x")}`;
}

function newSeed() {
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  generate();
}

async function save() {
  // All images of all runs on one sheet; one image is saved as it is.
  const all = runs.flatMap((run) => run.data);
  const [, height, width] = model.shape;
  const columns = runs.length > 1 ? runs[0].data.length : Math.ceil(Math.sqrt(all.length));
  const sheet = new OffscreenCanvas(width * columns, height * Math.ceil(all.length / columns));
  const context = sheet.getContext("2d");
  all.forEach((image, at) => context.putImageData(image, (at % columns) * width, Math.floor(at / columns) * height));
  const url = URL.createObjectURL(await sheet.convertToBlob({ type: "image/png" }));
  const name = `${runs[0].caption}${runs.length > 1 ? " and without" : ""}`.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  Object.assign(document.createElement("a"), { href: url, download: `${name}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  } catch {
    say(`The link is this page's address: ${location.href}`);
  }
}

/** Opens dropped or chosen files: checkpoints, or an image to change. */
async function open(files) {
  const list = [...files];
  if (list.length === 1 && list[0].type.startsWith("image/")) return openImage(list[0]);
  loadModel({ files: list });
}

async function openImage(file) {
  fail();
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return fail(`${file.name} is not an image that this browser reads.`);
  if (mode() === "generate") form.elements.mode.value = "redraw";
  setMode();
  painter.clear();
  painter.open(bitmap);
}

/** Calls a function with the files that a file input was given. */
function withFiles(id, take) {
  byId(id).onchange = ({ target }) => {
    if (target.files.length) take([...target.files]);
    target.value = "";
  };
}

form.onsubmit = (event) => {
  event.preventDefault();
  generate();
};
for (const radio of form.elements.mode) radio.onchange = setMode;
byId("cfg").oninput = showCfg;
byId("complete").oninput = showComplete;
// In the mode without an image, a changed setting shows its effect at once.
for (const id of ["class", "seed", "count", "cfg", "injector", "compare", "temperature", "top-k", "top-p"]) {
  byId(id).addEventListener("change", () => { if (mode() === "generate" && model && form.checkValidity()) generate(); });
}
byId("new-seed").onclick = newSeed;
byId("stop").onclick = stop;
byId("reset").onclick = () => {
  fill(model, `class=${byId("class").value}&seed=${byId("seed").value}`);
  if (mode() === "generate") generate();
};
byId("download").onclick = save;
byId("link").onclick = copyLink;
byId("take").onclick = () => { if (runs[0]?.data.length) painter.image = runs[0].data[0]; };
byId("open-image").onclick = () => byId("image-file").click();
withFiles("image-file", ([file]) => openImage(file));
byId("open-model").onclick = () => byId("model-files").click();
withFiles("model-files", open);
byId("own-model").onclick = () => loadModel({});
byId("open-urls").onclick = () => {
  const urls = byId("urls").value.split(/\s+/).filter(Boolean);
  if (urls.length) loadModel({ urls });
};
byId("clear-files").onclick = () => worker.postMessage({ type: "delete" });

document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) open(event.dataTransfer.files);
});
addEventListener("hashchange", () => {
  if (!model) return;
  fill(model, location.hash);
  form.elements.mode.value = "generate";
  setMode();
  generate();
});

if (typeof WebAssembly === "object" && typeof Worker === "function") {
  startWorker();
  loadModel({});
} else {
  fail("This browser has no WebAssembly or no workers: a newer one is needed.");
}
