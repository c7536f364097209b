#!/bin/sh
# Writes docs/results/fashion-mnist.md: the figures of the model that ships.
#
#     cargo build --release -p burn-var-cli
#     sh docs/results/fashion-mnist.sh [folder with the four IDX files]
#
# About a quarter of an hour on two cores. What was made is kept in target/results: a killed run goes on from there.
set -eu
cd "$(dirname "$0")/../.."
data=${1:-/usr/share/datasets/fashion-mnist}
burn_var="${BURN_VAR:-target/release/burn-var} --quiet"
classifier=models/fashion-mnist/classifier.safetensors
page=docs/results/fashion-mnist.md
mkdir -p target/results

show() {
    printf '\n```console\n$ burn-var %s\n' "$*"
    $burn_var "$@"
    printf '```\n'
}

{
    cat <<'TEXT'
# The model that ships, in figures

Made by `sh docs/results/fashion-mnist.sh`. The network behind the distances is the classifier that ships: FID's
Inception has nothing to say about grey pictures of 32x32, and these figures are comparable with one another only. The
column of real pictures is what training pictures reach, in the same number and against the same 10,000 test pictures.

## The tokenizer, on the 10,000 test pictures
TEXT
    show eval tokenizer --data "$data" --classifier "$classifier"
    printf '\n## 10,000 generated pictures, seed 0, with the settings and the injector that ship\n'
    show eval generated --data "$data" --classifier "$classifier" --count 10000 --copies --mirror --per-class \
        --resamples 200 --out target/results/fashion-mnist
} >target/results/page.md
mv target/results/page.md "$page"
