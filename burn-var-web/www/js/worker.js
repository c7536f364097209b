// Runs the model. Messages in: load, generate, stop, delete. Messages out: progress, ready, stage, done, failed, deleted.
import init, { Model } from "../pkg/burn_var_web.js";
import { deleteStored, load } from "./files.js";

let module;
let model;
/** Number of the job that is wanted: others stop at their next scale. */
let wanted = 0;
let queue = Promise.resolve();

const memory = () => module?.memory.buffer.byteLength ?? 0;

/** Text for the page: that of an error of the library, or of a panic, after which only a new worker helps. */
function explain(error) {
  const panic = globalThis.burnVarPanic;
  if (panic) return { message: `The module stopped: ${panic}`, fatal: true };
  if (error instanceof WebAssembly.RuntimeError) {
    const size = (memory() / 2 ** 20).toFixed(0);
    return { message: `The module stopped (${error.message}) with ${size} MiB in use. A page has at most 4096 MiB: use fewer images, or a smaller model.`, fatal: true };
  }
  return { message: error?.message ?? String(error), fatal: false };
}

/** A file as the module reads it, tensor by tensor. */
function readable(name, blob) {
  const reader = new FileReaderSync();
  return { name, size: blob.size, read: (start, end) => new Uint8Array(reader.readAsArrayBuffer(blob.slice(start, end))) };
}

const nameOf = (url) => decodeURIComponent(new URL(url, location.href).pathname.split("/").pop()) || url;

async function loadModel({ files, urls }) {
  const start = performance.now();
  const code = (async () => (module ??= await init()))();
  const progress = (name, done, total) => postMessage({ type: "progress", name, done, total });
  let [opened, stored] = [files?.map((file) => readable(file.name, file)), false];
  if (!opened) {
    const list = urls?.map((url) => ({ url, name: nameOf(url) })) ?? (await shipped());
    const loaded = await Promise.all(list.map((file) => load(file, progress)));
    opened = list.map(({ name }, at) => readable(name, loaded[at].blob));
    stored = loaded.every((file) => file.stored);
  }
  await code;
  const loaded = performance.now();
  const next = new Model(opened);
  model?.free();
  model = next;
  const sizes = opened.map(({ name, size }) => ({ name, size }));
  const [fetchMs, buildMs] = [loaded - start, performance.now() - loaded];
  const from = files ? "this computer" : stored ? "this browser's store" : "the server";
  postMessage({ type: "ready", model: JSON.parse(model.describe()), files: sizes, from, fetchMs, buildMs, memory: memory() });
}

/** The files of the model beside the page. */
async function shipped() {
  const response = await fetch("../model/model.json", { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw new Error("The model's list of files, model/model.json, cannot be fetched. Is the page's folder complete? burn-var-web/build.sh makes it.");
  const { files } = await response.json();
  return files.map((file) => ({ ...file, url: `../model/${file.name}` }));
}

/** Generates the runs of a job, one after the other. */
async function generate({ job, runs, canvas }) {
  if (!model) throw new Error("No model is loaded yet.");
  for (const [run, request] of runs.entries()) {
    const start = performance.now();
    let ms = 0;
    const show = async (number, images) => {
      ms = performance.now() - start;
      postMessage({ type: "stage", job, run, number, images, ms }, images.map((image) => image.buffer));
      // Lets a message come in that stops the job.
      await new Promise((resume) => setTimeout(resume));
      return wanted === job;
    };
    const finished = wanted === job && (await model.generate(JSON.stringify(request), canvas?.pixels, canvas?.width ?? 0, canvas?.redraw ?? new Uint8Array(), show));
    if (!finished) return postMessage({ type: "done", job, finished: false, memory: memory() });
    postMessage({ type: "finished", job, run, ms });
  }
  postMessage({ type: "done", job, finished: true, memory: memory() });
}

const handlers = { load: loadModel, generate, delete: async () => postMessage({ type: "deleted", any: await deleteStored() }) };

onmessage = ({ data }) => {
  if (data.type === "stop" || data.type === "generate") wanted = data.job ?? 0;
  if (data.type === "stop") return;
  queue = queue.then(() => handlers[data.type](data)).catch((error) => postMessage({ type: "failed", of: data.type, job: data.job, ...explain(error) }));
};
