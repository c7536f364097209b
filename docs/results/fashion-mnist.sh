#!/bin/sh
# Writes docs/results/fashion-mnist.md: measurements of the model that ships.
#
#     cargo build --release -p burn-var-cli
#     sh docs/results/fashion-mnist.sh [folder with the four IDX files]
#
# About a quarter of an hour on two cores. Results are kept in target/results, and the same command resumes
# an interrupted run.
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
# Measurements of the model that ships

Written by `sh docs/results/fashion-mnist.sh`. The distances are in the features of the classifier that ships: FID's
Inception knows nothing about gray images of 32x32. So these numbers are comparable only with one another. The column of
real images has the values of as many training images, against the same 10,000 test images.

## The tokenizer, on the 10,000 test images
TEXT
    show eval tokenizer --data "$data" --classifier "$classifier"
    printf '\n## 10,000 generated images, seed 0, with the settings and the injector that ship\n'
    show eval generated --data "$data" --classifier "$classifier" --count 10000 --copies --mirror --per-class \
        --resamples 200 --out target/results/fashion-mnist
} >target/results/page.md
mv target/results/page.md "$page"
