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
    $burn_var eval sweep "docs/results/sar/$1.toml" --data "$data" --judge models/fashion-mnist/judges \
        --out "$work/sweeps" --bars "docs/images/sar-$1.svg"
}

{
    cat docs/results/sar/summary.md
    for guidance in unguided guided; do
        [ $guidance = guided ] && title='With guidance' || title='Without guidance'
        printf '\n## %s\n' "$title"
        sweep $guidance
        printf '\n![Geometric mean of the ratios to continued teacher forcing](../images/sar-%s.svg)\n' $guidance
    done
} >"$work/sar.md"
mv "$work/sar.md" docs/results/sar.md
