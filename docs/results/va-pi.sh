#!/bin/sh
# Writes docs/results/va-pi.md: post-training by VA-pi on three families, with both of its terms and with each alone.
#
#     cargo build --release --workspace
#     sh docs/results/va-pi.sh [folder with the four IDX files]
#
# Trainings and results are kept in target/results/va-pi and target/results/studies, and the same command resumes an
# interrupted run.
set -eu
cd "$(dirname "$0")/../.."
. docs/results/next-scale-studies/train.sh

# The FlexVAR that all post-trainings of the studies start from.
train flexvar $folder/flexvar.toml one-shot-before-1 run.seed=1
folder=docs/results/va-pi
work=target/results/va-pi
mkdir -p "$work"
train llamagen-vq models/fashion-mnist-llamagen/tokenizer.toml llamagen-vq
train llamagen models/fashion-mnist-llamagen/transformer.toml llamagen tokenizer="$work/llamagen-vq/tokenizer.safetensors"

# arm NAME SETTING...: three trainings of each family.
arm() {
    name=$1
    shift
    for family in llamagen var flexvar; do
        for seed in $seeds; do
            train va-pi $folder/$family.toml "$family-$name-$seed" run.seed="$seed" "$@"
        done
    done
}
arm both
arm reward va_pi.loss.cross_entropy=0.0
arm cross-entropy va_pi.loss.policy=0.0

# mean NAME FILTER FAMILY ARM: a number of the log, the mean of the trainings; FILTER chooses the line.
mean() {
    for seed in $seeds; do
        $2 "$work/$3-$4-$seed/log.jsonl" | sed -n "s/.*\"$1\":\([-+.0-9eE]*\).*/\1/p"
    done | awk '{ sum += $1 } END { printf "%.4f", sum / NR }'
}
first() { head -n 1 "$1"; }
last() { tail -n 1 "$1"; }

# curves FAMILY: rewards and cross-entropy, before and after.
curves() {
    printf '\n| | reward, first step | last step | cross-entropy, first step | last step |\n| --- | ---: | ---: | ---: | ---: |\n'
    for arm in both reward cross-entropy; do
        printf '| %s |' "$arm"
        for name in reward cross_entropy; do
            printf ' %s | %s |' "$(mean $name first "$1" $arm)" "$(mean $name last "$1" $arm)"
        done
        printf '\n'
        cp "$work/$1-$arm-1/reward.svg" "docs/images/va-pi-$1-$arm.svg"
    done
    printf '\n![Reward by step, both terms, first seed](../images/va-pi-%s-both.svg)\n' "$1"
}

sweep() {
    printf '\n`burn-var eval sweep docs/results/va-pi/%s.toml`, ' "$1"
    $burn_var eval sweep "docs/results/va-pi/$1.toml" --data "$data" --judge models/fashion-mnist/judges \
        --out "$work/sweeps"
}

{
    cat $folder/summary.md
    for family in llamagen var flexvar; do
        case $family in
        llamagen) title=LlamaGen ;;
        var) title=VAR ;;
        *) title=FlexVAR ;;
        esac
        printf '\n## %s\n' "$title"
        curves $family
        printf '\nWithout guidance:\n'
        sweep $family-unguided
        printf '\nWith guidance:\n'
        sweep $family-guided
    done
} >"$work/page.md"
mv "$work/page.md" docs/results/va-pi.md
