#!/bin/sh
# Writes docs/results/sar.md: SAR beside continued teacher forcing and naive student forcing.
#
#     cargo build --release --workspace
#     sh docs/results/sar.sh [folder with the four IDX files]
#
# Trainings and results are kept in target/results/studies, and the same command resumes an interrupted run.
set -eu
cd "$(dirname "$0")/../.."
. docs/results/next-scale-studies/train.sh

post_training teacher-forcing student_forcing.schedule=teacher-forcing
post_training sar-released sar.preset=released
post_training sar-paper sar.preset=paper
post_training student-forcing student_forcing.schedule=full

sweep() {
    printf '\n`burn-var eval sweep docs/results/sar/%s.toml`, ' "$1"
    $burn_var eval sweep "docs/results/sar/$1.toml" --data "$data" $judges --out "$work/sweeps" $2
}

judges=
for file in models/fashion-mnist/judges/*.safetensors; do
    judges="$judges --judge $file"
done

{
    cat docs/results/sar/summary.md
    printf '\n## Each method, judged by several networks\n'
    sweep methods "--bars docs/images/sar.svg"
    printf '\n![Ratio of the Frechet distance to that of continued teacher forcing](../images/sar.svg)\n'
} >"$work/sar.md"
mv "$work/sar.md" docs/results/sar.md
