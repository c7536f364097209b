#!/bin/sh
# Writes docs/results/aid-var.md: the effect of AID-VAR on the model that ships.
#
#     cargo build --release -p burn-var-cli
#     sh docs/results/aid-var.sh [folder with the four IDX files]
#
# About three hours on two cores. Trainings and results are kept in target/results/aid, and the same command
# resumes an interrupted run.
set -eu
cd "$(dirname "$0")/../.."
data=${1:-/usr/share/datasets/fashion-mnist}
burn_var="${BURN_VAR:-target/release/burn-var} --quiet"
models=models/fashion-mnist
work=target/results/aid
mkdir -p "$work"

# train NAME CONFIG SETTING...: trains in $work/NAME, on the tokens of the images that the first training has cached.
train() {
    name=$1 config=$2
    shift 2
    mkdir -p "$work/$name"
    if [ -f "$work/seed-1/tokens.safetensors" ] && [ ! -f "$work/$name/tokens.safetensors" ]; then
        ln "$work/seed-1/tokens.safetensors" "$work/$name/tokens.safetensors"
    fi
    for setting; do
        shift
        set -- "$@" --set "$setting"
    done
    $burn_var train aid "$config" --out "$work/$name" --set "data.path=$data" "$@" >/dev/null
}

grep -v '^encoder' $models/aid.toml >"$work/features.toml"
for seed in 1 2 3; do
    train seed-$seed $models/aid.toml run.seed=$seed
    train broadcast-$seed $models/aid.toml run.seed=$seed injector.broadcast=true
    train mean-$seed $models/aid.toml run.seed=$seed loss.decode=mean
    train lora-$seed $models/aid.toml run.seed=$seed lora={}
    train features-$seed "$work/features.toml" run.seed=$seed discriminator.input=quantizer-features
done

sweep() {
    file=docs/results/aid-var/$1.toml
    printf '\n`burn-var eval sweep %s`, ' "$file"
    $burn_var eval sweep "$file" --data "$data" --classifier $models/classifier.safetensors --out "$work/sweeps"
}

{
    cat docs/results/aid-var/summary.md
    printf '\n## The baseline and the injector, tuned alike\n'
    sweep tuning
    printf "\n## Methods, at the baseline's best settings\n"
    sweep methods
    printf '\n## Weights of the injector\n'
    sweep weights
    printf '\n## Consistency between scales\n'
    for seed in 0 1 2; do
        set -- --aid $models/injector.safetensors --cfg 3 --top-p 1 --count 1000 --seed $seed
        printf '\n```console\n$ burn-var eval iscs --data FOLDER --dino %s/dino.safetensors %s\n' $models "$*"
        $burn_var eval iscs --data "$data" --dino $models/dino.safetensors "$@"
        printf '```\n'
    done
} >"$work/page.md"
mv "$work/page.md" docs/results/aid-var.md
