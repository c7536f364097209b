// Runs the module of this folder: node run.mjs burn_var_wasm.wasm. It is loaded as cargo builds it, without generated
// JavaScript, so every import that inference calls is seen here: text to print, and random bytes for Burn's parameter ids.
import { readFileSync } from "node:fs";

const module = await WebAssembly.compile(readFileSync(process.argv[2]));
let memory;
const bytes = (start, length) => new Uint8Array(memory.buffer, start >>> 0, length >>> 0);
const known = {
  print: (start, length) => console.log(new TextDecoder().decode(bytes(start, length))),
  getRandomValues: (start, length) => void crypto.getRandomValues(bytes(start, length)),
};
const imports = {};
for (const { module: from, name } of WebAssembly.Module.imports(module)) {
  const short = Object.keys(known).find((key) => name === key || name.startsWith(`__wbg_${key}_`));
  imports[from] ??= {};
  imports[from][name] = known[short] ?? (() => {
    throw new Error(`inference called ${name}, which a host need not have`);
  });
}
const { exports } = await WebAssembly.instantiate(module, imports);
memory = exports.memory;
exports.run();
