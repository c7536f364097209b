// Settings in the form and in the address, so that a link shows the same image. The address names only what differs from
// the model's own settings.

/** Controls with a number, and the names of their settings in the module. */
const NUMBERS = { cfg: "cfg", temperature: "temperature", "top-k": "top_k", "top-p": "top_p" };
/** The model's own settings, as the controls show them. */
const own = {};
const byId = (id) => document.getElementById(id);

const round = (value) => Number(value.toPrecision(6));

/** Sets the form to the model's settings, then to those in the address. */
export function fill(model, address) {
  const given = new URLSearchParams(address.replace(/^#/, ""));
  const number = (name, least, most, otherwise) => {
    const value = Number(given.get(name));
    return given.has(name) && Number.isFinite(value) && value >= least && value <= most ? value : otherwise;
  };
  const label = number("class", 0, model.classes.length - 1, given.get("class") === "none" ? "none" : model.classes.length - 1);
  byId("class").value = String(label);
  byId("seed").value = Math.trunc(number("seed", 0, Number.MAX_SAFE_INTEGER, 1));
  byId("count").value = String(number("count", 1, 16, 1));
  if (!byId("count").value) byId("count").value = "1";
  byId("cfg").max = Math.max(8, Math.ceil(model.cfg), number("cfg", 0, 100, 0));
  for (const [id, key] of Object.entries(NUMBERS)) {
    byId(id).value = round(model[key]);
    own[id] = byId(id).valueAsNumber;
    byId(id).value = number(id, -Infinity, Infinity, own[id]);
  }
  byId("injector").checked = model.injector && given.get("injector") !== "off";
  byId("compare").checked = given.get("compare") === "on";
  byId("sampling").open ||= ["temperature", "top-k", "top-p"].some((name) => given.has(name));
  showCfg();
}

/** Shows the strength beside its slider. */
export const showCfg = () => { byId("cfg-out").value = Number(byId("cfg").value).toFixed(1); };

/** Returns the form's settings as the module reads them. */
export function read() {
  const label = byId("class").value;
  const wanted = { class: label === "none" ? null : Number(label), count: Number(byId("count").value), seed: Number(byId("seed").value) };
  for (const [id, key] of Object.entries(NUMBERS)) {
    const value = byId(id).valueAsNumber;
    // The model's own setting is left out, so that it keeps its exact form.
    if (value !== own[id]) wanted[key] = value;
  }
  if (!byId("injector").checked) wanted.without_injector = true;
  return wanted;
}

/** Returns the same request without guidance. */
export const plain = (wanted) => ({ ...wanted, cfg: 0, without_injector: true });

/** Returns the address of the form's settings. */
export function address(model) {
  const wanted = read();
  const parts = new URLSearchParams({ class: byId("class").value, seed: wanted.seed });
  if (wanted.count !== 1) parts.set("count", wanted.count);
  for (const [id, key] of Object.entries(NUMBERS)) if (key in wanted) parts.set(id, wanted[key]);
  if (model.injector && wanted.without_injector) parts.set("injector", "off");
  if (byId("compare").checked) parts.set("compare", "on");
  return `#${parts}`;
}

/** Fits the controls to a model. */
export function fit(model) {
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  byId("class").replaceChildren(...model.classes.map((name, at) => option(at, name)), option("none", "none"));
  for (const id of ["class", "generate"]) byId(id).disabled = false;
  byId("injector").disabled = !model.injector;
  byId("complete").max = Math.max(1, model.scales.length - 1);
}
