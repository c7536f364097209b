# Trains the transformers of next-scale-studies.sh and sar.sh, which read this file. Runs are kept in target/results/studies;
# a run that was interrupted is resumed, and a finished one is not repeated.
data=${1:-/usr/share/datasets/fashion-mnist}
burn_var="${BURN_VAR:-target/release/burn-var} --quiet"
folder=docs/results/next-scale-studies
work=target/results/studies
seeds="1 2 3"
mkdir -p "$work"

# train METHOD CONFIG NAME SETTING...: trains in $work/NAME.
train() {
    method=$1 config=$2 run=$work/$3
    shift 3
    for setting; do
        shift
        set -- "$@" --set "$setting"
    done
    $burn_var train "$method" "$config" --out "$run" --set "data.path=$data" "$@" >/dev/null
}

# from_scratch NAME SETTING...: three transformers that differ in the seed.
from_scratch() {
    name=$1
    shift
    for seed in $seeds; do
        train flexvar $folder/flexvar.toml "$name-$seed" run.seed="$seed" "$@"
    done
}

# post_training NAME SETTING...: three trainings that start from one transformer.
post_training() {
    name=$1
    shift
    train flexvar $folder/flexvar.toml one-shot-before-1 run.seed=1
    for seed in $seeds; do
        train sar $folder/post-training.toml "$name-$seed" run.seed="$seed" "$@"
    done
}
