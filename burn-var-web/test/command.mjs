// Images of the command `burn-var`, to compare with.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { inflateRawSync } from "node:zlib";

const { BURN_VAR, MODEL } = process.env;

/** Runs the command with the model of the page. */
export function run(command, target, ...args) {
  execFileSync(BURN_VAR, [command, ...target, ...args, "--model", MODEL], { stdio: ["ignore", "ignore", "inherit"] });
}

/** Returns the images that `burn-var sample` generates, red, green and blue bytes each. */
export function sample(folder, ...args) {
  const npz = join(folder, "sample.npz");
  run("sample", [], ...args, "--npz", npz);
  return arrays(readFileSync(npz)).arr_0;
}

/** Returns the rows of each array of an `.npz` file: one `Uint8Array` per entry of the first axis. */
function arrays(zip) {
  const found = {};
  let at = zip.readUInt32LE(zip.lastIndexOf("PK\x05\x06", zip.length, "latin1") + 16);
  while (zip.readUInt32LE(at) === 0x02014b50) {
    const [method, size, nameLength] = [zip.readUInt16LE(at + 10), zip.readUInt32LE(at + 20), zip.readUInt16LE(at + 28)];
    const local = zip.readUInt32LE(at + 42);
    const name = zip.toString("utf8", at + 46, at + 46 + nameLength).replace(/\.npy$/, "");
    const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
    const raw = zip.subarray(start, start + size);
    const npy = method === 0 ? raw : inflateRawSync(raw);
    const headerLength = npy[6] === 1 ? npy.readUInt16LE(8) : npy.readUInt32LE(8);
    const data = (npy[6] === 1 ? 10 : 12) + headerLength;
    const shape = /'shape': \(([^)]*)\)/.exec(npy.toString("latin1", 0, data))[1].split(",").map(Number);
    const row = (npy.length - data) / shape[0];
    found[name] = Array.from({ length: shape[0] }, (_, i) => new Uint8Array(npy.subarray(data + i * row, data + (i + 1) * row)));
    at += 46 + nameLength + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
  }
  return found;
}
