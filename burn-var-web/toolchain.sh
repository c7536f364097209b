# Sourced: finds a compiler for wasm32-unknown-unknown, from the root of the repository. Sets `wasm_cargo` and `wasm_flags`,
# which begin each command, and `wasm_target_dir`; returns 1 if there is none.
#
# First choice is the default toolchain with the target's standard library, from `rustup target add`. Second is Debian's
# newest compiler, which builds that library from its own sources.

wasm_triple=wasm32-unknown-unknown

wasm_has_std() {
    ls "$(rustc --print target-libdir --target "$wasm_triple" 2>/dev/null)"/libstd-* >/dev/null 2>&1
}

wasm_toolchain() {
    wasm_flags="--target $wasm_triple --locked"
    wasm_target_dir=${CARGO_TARGET_DIR:-target}
    if wasm_has_std; then
        wasm_cargo=cargo
        return 0
    fi
    # Compiler and sources must be of one version: these are the sources that belong to this compiler.
    [ -x /usr/bin/rustc ] && [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library" ] || return 1
    llvm=$(/usr/bin/rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    [ -x "/usr/bin/wasm-ld-$llvm" ] || return 1
    wasm_cargo=/usr/bin/cargo
    # Only nightly compilers build a standard library, unless told so. A folder of its own: these are other compilers.
    export RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="/usr/bin/wasm-ld-$llvm"
    wasm_target_dir=$wasm_target_dir/wasm
    wasm_flags="$wasm_flags -Zbuild-std=std,panic_abort --target-dir $wasm_target_dir"
}
