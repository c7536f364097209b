#!/bin/sh
# Writes docs/results/guidance.md: the effect of guidance on the model that ships.
#
#     cargo build --release -p burn-var-cli
#     sh docs/results/guidance.sh [folder with the four IDX files]
#
# About an hour and a half on two cores. Results are kept in target/results/guidance, and the same command
# resumes an interrupted run.
set -eu
cd "$(dirname "$0")/../.."
data=${1:-/usr/share/datasets/fashion-mnist}
burn_var="${BURN_VAR:-target/release/burn-var} --quiet"
work=target/results/guidance
mkdir -p "$work"

sweep() {
    file=docs/results/guidance/$1.toml
    shift
    printf '\n`burn-var eval sweep %s`, ' "$file"
    $burn_var eval sweep "$file" --data "$data" --classifier models/fashion-mnist/classifier.safetensors \
        --out "$work/sweeps" "$@"
}

spectra() {
    printf '\n```sh\nburn-var eval spectra --no-aid --cfg 2 --top-p 1 %s\n```\n\n' "$*"
    $burn_var eval spectra --no-aid --cfg 2 --top-p 1 "$@"
}

{
    cat docs/results/guidance/summary.md
    printf '\n## The best settings of each method\n'
    sweep tuning
    printf '\n## The methods, their variants and combinations\n'
    sweep methods
    printf '\n## Over temperatures\n\n'
    printf '![Frechet distance over the share of recognized images, for temperatures from 0.5 to 1.5](../images/guidance-frontier.svg)\n'
    sweep frontier --plot docs/images/guidance-frontier.svg
    printf '\n## The effect of Scaled Spatial Guidance on frequencies\n\n'
    printf '![Change of the logarithm of magnitudes, by frequency](../images/guidance-spectra.svg)\n'
    spectra --ssg 0.3 --count 500 --plot docs/images/guidance-spectra.svg
} >"$work/page.md"
mv "$work/page.md" docs/results/guidance.md
