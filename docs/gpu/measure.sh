#!/bin/sh
# Measures burn-var on a GPU: tests, self-check, speed beside PyTorch, memory. At most 25 minutes after the build.
#
#     sh docs/gpu/measure.sh                        # an NVIDIA GPU
#     DEVICE=vulkan sh docs/gpu/measure.sh          # any GPU with a Vulkan driver, without PyTorch
#     sh docs/gpu/measure.sh --dry-run              # the shipped model on any device: proves the script, measures nothing
#
# Results go to target/gpu; `table.md` there is what docs/performance.md shows. Each part is kept as soon as it is done, and
# the same command does what is missing: after an error, when time was up (MINUTES, 25 by default), or on a machine that is
# lent for ten minutes at a time.
#
# PyTorch is measured if PYTHON (python3 by default) has torch, and VAR names a clone of
# https://github.com/FoundationVision/VAR. The building of burn-var is described in docs/gpu.md, also without internet.
set -eu
cd "$(dirname "$0")/../.."

dry=
[ "${1-}" = --dry-run ] && dry=1
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
out=target/gpu/$device${dry:+-dry-run}
minutes=${MINUTES:-25}
mkdir -p "$out"

# part NAME SECONDS COMMAND...: runs a command once, and keeps what it prints.
part() {
    name=$1 limit=$2
    shift 2
    [ -e "$out/$name.txt" ] && return
    left=$((end - $(date +%s)))
    if [ $left -lt 10 ]; then
        echo "$name: left for the next run, time is up"
        return
    fi
    [ "$left" -lt "$limit" ] && limit=$left
    printf '%s: ' "$name"
    start=$(date +%s)
    if timeout "$limit" "$@" >"$out/$name.part" 2>"$out/$name.log"; then
        mv "$out/$name.part" "$out/$name.txt"
        rm -f "$out/$name.failed"
        echo "done in $(($(date +%s) - start)) s"
    else
        # What was printed stays, and the part is run again by the next call.
        mv "$out/$name.part" "$out/$name.failed"
        echo "FAILED after $(($(date +%s) - start)) s, see $out/$name.log"
    fi
}

facts() {
    echo "$(date -u +%Y-%m-%d), burn-var $(git rev-parse --short HEAD 2>/dev/null || echo 'of an unknown commit'), device $device"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no NVIDIA driver"
    echo "CUDA toolkit in ${CUDA_PATH:-/usr/local/cuda}: $(ls "${CUDA_PATH:-/usr/local/cuda}/version.json" 2>/dev/null || echo none)"
    echo "$(nproc) processors, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
    rustc --version
    "$python" -c 'import torch; print("PyTorch", torch.__version__, torch.version.cuda)' 2>/dev/null || echo "no PyTorch"
}

# Building takes long and is not counted. A dry run is for slow devices: it is not optimized, and tries few kernels.
profile=--release folder=release
if [ -n "$dry" ]; then
    profile='' folder=debug
    export CUBECL_AUTOTUNE_LEVEL=minimal CARGO_PROFILE_DEV_DEBUG=0
fi
# shellcheck disable=SC2086 # no profile is no argument
cargo build $profile -p burn-var-cli --locked --features "$device"
program=target/$folder/burn-var
golden() {
    # shellcheck disable=SC2086
    cargo test $profile -p burn-var-tests --locked --no-default-features --features "$device" --test parity "$@"
}
golden --no-run
tests=$(golden --no-run 2>&1 | sed -n 's/.*(\(.*parity-[0-9a-f]*\)).*/\1/p')

end=$(($(date +%s) + 60 * minutes))
facts >"$out/facts.txt"
cat "$out/facts.txt"

precisions='exact tf32 bf16'
[ "$device" = cuda ] || precisions='exact bf16'
preset='--preset d16 --batch 1' only='' runs=20 rounds=1
[ -n "$dry" ] && preset='--batch 1' only='--only shipped' runs=1

# 1. Truth first: a fast wrong result is worth nothing.
part check 120 $program --device "$device" bench --check
for precision in $precisions; do
    # shellcheck disable=SC2086
    part "check-d16-$precision" 180 $program --device "$device" bench --check $preset --precision "$precision"
    part "golden-$precision" 300 env BURN_VAR_PRECISION="$precision" "$tests" "${device}::"
done

# 2. Speed, ours and PyTorch's in turn. bf16 is what sampling uses by default on CUDA; the others are for comparison.
compare="$python docs/compare_with_pytorch.py --burn-var $program --device $device --runs $runs --rounds $rounds"
if [ "$device" = cuda ] && [ -n "${VAR-}" ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    compare="$compare --var $VAR --compile"
else
    compare="$compare --without-pytorch"
fi
measure() {
    # shellcheck disable=SC2086 # words of a command
    part "speed-$1-$3" "$2" $compare --precision "$3" ${only:---only "$4"}
}
measure sample-d16 300 bf16 'sample d16'
measure train-d16 240 bf16 'train d16'
measure sample-d20 240 bf16 'sample d20'
measure train-shipped 120 tf32 'shipped'
measure sample-d16 300 tf32 'sample d16'
measure train-d16 240 tf32 'train d16'
measure decode 120 bf16 'code 256x256'
measure sample-d24 240 bf16 'sample d24'
measure sample-d30 240 bf16 'sample d30'
measure train-d24 240 bf16 'train d24'
measure sample-d16 300 exact 'sample d16'

# 3. Without fusion and without our kernels: what they bring.
bench() {
    name=$1
    shift
    # shellcheck disable=SC2086
    part "$name" 180 $program --device "$device" --json --quiet "$@" bench $preset --runs "$runs" --only sample
}
bench plain
bench no-fusion --no-fusion
BURN_VAR_KERNELS=generic bench no-kernels

# 4. Memory that grows: a thousand steps, and what the driver reports once a second.
steps=1000
[ -n "$dry" ] && steps=20
# shellcheck disable=SC2016 # the inner shell expands
part growth 300 sh -c '
    "$@" & run=$!
    while kill -0 $run 2>/dev/null; do
        nvidia-smi --query-compute-apps=used_memory --format=csv,noheader,nounits 2>/dev/null
        sleep 1
    done
    wait $run' growth $program --device "$device" --json --quiet bench --only train-var --runs $steps

# 5. Where the time goes.
if command -v nsys >/dev/null; then
    # shellcheck disable=SC2086
    part profile 180 nsys profile --stats=true --force-overwrite=true --output="$out/profile" \
        $program --device "$device" --quiet bench $preset --runs 3 --only sample
fi

{
    cat "$out/facts.txt"
    printf '\n| part | result |\n| --- | --- |\n'
    for result in "$out"/check*.txt "$out"/golden-*.txt; do
        [ -e "$result" ] && echo "| $(basename "$result" .txt) | passed |"
    done
    for result in "$out"/*.failed; do
        [ -e "$result" ] && echo "| $(basename "$result" .failed) | FAILED |"
    done
    for result in "$out"/speed-*.txt; do
        [ -e "$result" ] && printf '\n%s\n\n' "$(basename "$result" .txt):" && cat "$result"
    done
    [ -e "$out/growth.txt" ] && printf '\nmemory in a thousand steps, MiB: first %s, last %s\n' \
        "$(grep -m 1 '^[0-9]*$' "$out/growth.txt")" "$(grep '^[0-9]*$' "$out/growth.txt" | tail -n 1)"
} >"$out/table.md" || true
echo "table: $out/table.md"
