#!/bin/sh
# Builds the page: sh burn-var-web/build.sh [--install] [--out FOLDER] [MODEL]
#
# MODEL is a folder with tokenizer.safetensors, transformer.safetensors and, if it has one, injector.safetensors; the model
# that ships by default. The result is a folder for any static host, burn-var-web/dist by default. What is missing is named
# with the command that installs it; --install runs that command.
set -eu
cd "$(dirname "$0")/.."

install='' model=models/fashion-mnist out=burn-var-web/dist
while [ $# -gt 0 ]; do
    case $1 in
        --install) install=yes ;;
        --out) out=$2; shift ;;
        -*) echo "unknown flag $1; see the head of burn-var-web/build.sh" >&2; exit 2 ;;
        *) model=$1 ;;
    esac
    shift
done

# missing WHAT COMMAND: runs the command, or says it and ends.
missing() {
    echo "missing: $1" >&2
    if [ -z "$install" ]; then
        printf 'install it with\n    %s\nor run this again with --install\n' "$2" >&2
        exit 1
    fi
    sh -c "$2"
}

command -v cargo >/dev/null || { echo "missing: Rust 1.95 or newer, from https://rustup.rs" >&2; exit 1; }
. burn-var-web/toolchain.sh
wasm_toolchain || {
    missing "a standard library for $wasm_triple" "rustup target add $wasm_triple"
    wasm_toolchain || { echo "it is still missing; docs/web.md says how to do without rustup" >&2; exit 1; }
}

# JavaScript for the module: the command must be of the version of the library.
version=$(awk '/^name = "wasm-bindgen"$/ { getline; gsub(/"/, "", $3); print $3 }' Cargo.lock)
tools=${CARGO_TARGET_DIR:-target}/tools
bindgen() {
    for found in "$tools/bin/wasm-bindgen" "$(command -v wasm-bindgen || true)"; do
        [ -x "$found" ] && [ "$("$found" --version)" = "wasm-bindgen $version" ] && echo "$found" && return 0
    done
    return 1
}
bindgen >/dev/null ||
    missing "wasm-bindgen $version" "cargo install wasm-bindgen-cli --version $version --debug --root '$tools'"
bindgen=$(bindgen)

for part in tokenizer transformer; do
    [ -f "$model/$part.safetensors" ] || { echo "the folder $model has no $part.safetensors" >&2; exit 1; }
done

# 128-bit SIMD is in every browser since 2023. Without it an image takes several times as long.
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="-C target-feature=+simd128"
# shellcheck disable=SC2086 # several words
"$wasm_cargo" build -p burn-var-web --profile web $wasm_flags
rm -rf "$out"
mkdir -p "$out/model"
cp -R burn-var-web/www/. "$out/"
"$bindgen" --target web --no-typescript --remove-name-section --remove-producers-section --out-dir "$out/pkg" \
    "$wasm_target_dir/$wasm_triple/web/burn_var_web.wasm"

# The list of the model's files, by which the page shows progress and finds what it has stored.
sha256() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1; }
list=''
for part in tokenizer transformer injector; do
    file=$model/$part.safetensors
    [ -f "$file" ] || continue
    cp "$file" "$out/model/"
    entry="{ \"name\": \"$part.safetensors\", \"size\": $(wc -c <"$file" | tr -d ' '), \"sha256\": \"$(sha256 "$file")\" }"
    list="$list${list:+,
    }$entry"
done
printf '{\n  "files": [\n    %s\n  ]\n}\n' "$list" >"$out/model/model.json"

wasm=$out/pkg/burn_var_web_bg.wasm
echo "$out: the module has $(wc -c <"$wasm" | tr -d ' ') bytes, $(gzip -9c "$wasm" | wc -c | tr -d ' ') with gzip"
