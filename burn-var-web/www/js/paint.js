// An image that is painted on: a mask of what to redraw, or shades of a sketch. With a mouse, a finger or the keyboard.
const byId = (id) => document.getElementById(id);
const MASK = [251, 146, 60];
const SHADES = ["#000000", "#404040", "#808080", "#c0c0c0", "#ffffff"];
const HELP = {
  redraw: "Paint over the part to redraw. Keys: arrows move, Space paints, Backspace erases; or select a half.",
  sketch: "Paint a coarse sketch; the finer scales are generated. Keys: arrows move, Space paints.",
};

export class Painter {
  #canvas = byId("paint");
  #image = new ImageData(1, 1);
  #mask = new Uint8Array(1);
  #shade = SHADES[3];
  #cursor = null;
  #mode = "redraw";
  #last = null;

  constructor() {
    const shades = SHADES.map((shade, at) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "shade", title: `Shade ${at + 1} of ${SHADES.length}, from black` });
      button.setAttribute("role", "radio");
      button.setAttribute("aria-label", button.title);
      button.style.background = shade;
      button.onclick = () => this.#pick(shade);
      return button;
    });
    byId("shades").replaceChildren(...shades);
    this.#pick(this.#shade);
    for (const button of byId("halves").children) button.onclick = () => this.#half(button.dataset.half);
    byId("clear-paint").onclick = () => this.clear();
    const canvas = this.#canvas;
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#last = null;
      this.#stroke(event);
    };
    canvas.onpointermove = (event) => { if (event.buttons) this.#stroke(event); };
    canvas.onpointerup = canvas.onpointercancel = () => { this.#last = null; };
    canvas.onkeydown = (event) => this.#key(event);
    canvas.onblur = () => { this.#cursor = null; this.#draw(); };
  }

  /** Sets the size of the model's images. */
  resize(width, height) {
    if (this.#canvas.width === width && this.#canvas.height === height) return;
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#mask = new Uint8Array(width * height);
    this.#image = new ImageData(width, height);
    this.#blank();
    byId("brush").max = Math.max(2, Math.round(width / 3));
    byId("brush").value = Math.max(2, Math.round(width / 6));
    this.#draw();
  }

  /** Paints a mask (`redraw`) or shades (`sketch`). */
  set mode(mode) {
    this.#mode = mode;
    byId("paint-help").textContent = HELP[mode];
    byId("shades").hidden = mode !== "sketch";
    byId("halves").hidden = byId("take").hidden = mode !== "redraw";
    byId("complete-row").hidden = mode !== "sketch";
    this.#canvas.setAttribute("aria-label", mode === "redraw" ? "Image and mask" : "Sketch");
    this.#draw();
  }

  /** Replaces the image, `ImageData` of the model's size. */
  set image(image) {
    this.#image.data.set(image.data);
    this.#draw();
  }

  /** Draws a picture over the whole image, cut to its shape. */
  open(bitmap) {
    const { width, height } = this.#canvas;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    const scale = Math.max(width / bitmap.width, height / bitmap.height);
    const [w, h] = [bitmap.width * scale, bitmap.height * scale];
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
    this.image = context.getImageData(0, 0, width, height);
  }

  /** Removes the mask; of a sketch, everything. */
  clear() {
    this.#mask.fill(0);
    if (this.#mode === "sketch") this.#blank();
    this.#draw();
  }

  /** True if there is something to redraw. */
  get isMarked() {
    return this.#mask.some(Boolean);
  }

  /** Returns what the module reads: red, green and blue bytes, and the mask. */
  get canvas() {
    const { data, width } = this.#image;
    const pixels = new Uint8Array((data.length / 4) * 3);
    for (let at = 0; at < data.length / 4; at++) for (let c = 0; c < 3; c++) pixels[3 * at + c] = data[4 * at + c];
    return { pixels, width, redraw: this.#mode === "redraw" ? this.#mask.slice() : new Uint8Array() };
  }

  #blank() {
    for (let at = 0; at < this.#image.data.length; at++) this.#image.data[at] = at % 4 === 3 ? 255 : 0;
  }

  #pick(shade) {
    this.#shade = shade;
    [...byId("shades").children].forEach((button, at) => button.setAttribute("aria-checked", String(SHADES[at] === shade)));
  }

  #half(half) {
    const { width, height } = this.#canvas;
    const inside = { top: (x, y) => y < height / 2, bottom: (x, y) => y >= height / 2, left: (x) => x < width / 2, right: (x) => x >= width / 2 }[half];
    for (let at = 0; at < this.#mask.length; at++) if (inside(at % width, Math.floor(at / width))) this.#mask[at] = 255;
    this.#draw();
  }

  #stroke(event) {
    const box = this.#canvas.getBoundingClientRect();
    const point = [((event.clientX - box.left) / box.width) * this.#canvas.width, ((event.clientY - box.top) / box.height) * this.#canvas.height];
    const from = this.#last ?? point;
    const steps = Math.max(1, Math.ceil(Math.hypot(point[0] - from[0], point[1] - from[1])));
    for (let step = 1; step <= steps; step++) {
      this.#dot(from[0] + ((point[0] - from[0]) * step) / steps, from[1] + ((point[1] - from[1]) * step) / steps, event.shiftKey);
    }
    this.#last = point;
    this.#draw();
  }

  /** Paints a disk around a point. */
  #dot(x, y, erase) {
    const { width, height } = this.#canvas;
    const radius = Number(byId("brush").value) / 2;
    const shade = [1, 3, 5].map((at) => parseInt(this.#shade.slice(at, at + 2), 16));
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius + 1); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius + 1); column++) {
        if (Math.hypot(column + 0.5 - x, row + 0.5 - y) > Math.max(radius, 0.75)) continue;
        const at = row * width + column;
        if (this.#mode === "redraw") this.#mask[at] = erase ? 0 : 255;
        else this.#image.data.set(erase ? [0, 0, 0] : shade, 4 * at);
      }
    }
  }

  #key(event) {
    const { width, height } = this.#canvas;
    const step = Math.max(1, Math.round(width / 16));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const [x, y] = this.#cursor ?? [width / 2, height / 2];
    if (moves[event.key]) this.#cursor = [Math.min(width, Math.max(0, x + moves[event.key][0])), Math.min(height, Math.max(0, y + moves[event.key][1]))];
    else if (event.key === " ") this.#dot(x, y, false);
    else if (event.key === "Backspace") this.#dot(x, y, true);
    else return;
    this.#cursor ??= [x, y];
    event.preventDefault();
    this.#draw();
  }

  #draw() {
    const { width, height } = this.#canvas;
    const shown = new ImageData(this.#image.data.slice(), this.#image.width, this.#image.height);
    if (this.#mode === "redraw") {
      this.#mask.forEach((marked, at) => {
        if (marked) MASK.forEach((value, c) => { shown.data[4 * at + c] = 0.4 * shown.data[4 * at + c] + 0.6 * value; });
      });
    }
    const context = this.#canvas.getContext("2d");
    context.putImageData(shown, 0, 0);
    if (this.#cursor) {
      context.fillStyle = "#38bdf8";
      context.fillRect(Math.min(width - 1, this.#cursor[0]), Math.min(height - 1, this.#cursor[1]), Math.ceil(width / 32), Math.ceil(width / 32));
    }
  }
}
