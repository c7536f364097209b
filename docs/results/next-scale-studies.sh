#!/bin/sh
# Writes docs/results/next-scale-studies.md: the pre-studies of SAR's paper at a small scale.
#
#     cargo build --release --workspace
#     sh docs/results/next-scale-studies.sh [folder with the four IDX files]
#
# Trainings and results are kept in target/results/studies, and the same command resumes an interrupted run.
set -eu
cd "$(dirname "$0")/../.."
. docs/results/next-scale-studies/train.sh

# Schedules of student forcing.
post_training teacher-forcing student_forcing.schedule=teacher-forcing
post_training student-forcing student_forcing.schedule=full
post_training alternate student_forcing.schedule=alternate
post_training interleave student_forcing.schedule=interleave
post_training hybrid 'student_forcing.schedule={ hybrid-from = 8 }'

# One-shot or masked first scale, all scales before or the class token alone.
masked='first={ masked = { own_positions = true } }'
from_scratch one-shot-before
from_scratch one-shot-class sees=class-token
from_scratch masked-before "$masked" 'patch_nums=[4, 4, 4, 4, 6, 8]'
from_scratch masked-class "$masked" 'patch_nums=[4, 4, 4, 4, 6, 8]' sees=class-token

# Tokens of resized latents or of resized images, with a tokenizer that was trained at several scales or at the last alone.
train flexvae models/fashion-mnist-flexvar/tokenizer.toml last-scale-tokenizer extra_scales=0
last=tokenizer=$work/last-scale-tokenizer/tokenizer.safetensors
from_scratch image supervision=image
from_scratch last-scale-latent "$last"
from_scratch last-scale-image "$last" supervision=image

sweep() {
    printf '\n`burn-var eval sweep %s/%s.toml`, ' $folder "$1"
    $burn_var eval sweep "$folder/$1.toml" --data "$data" --judge models/fashion-mnist/judges \
        --out "$work/sweeps"
}

{
    cat $folder/summary.md
    printf '\n## Schedules of student forcing\n'
    sweep student-forcing
    printf '\n## The first scale, and what the others see\n'
    sweep hybrids
    printf '\n## Latents or images\n'
    sweep supervision
} >"$work/page.md"
mv "$work/page.md" docs/results/next-scale-studies.md
