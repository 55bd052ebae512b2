#!/usr/bin/env bash
# ResNet-152 -> ResNet-50 on a GPU, pictures of 600 x 1000 px at most, bf16, batches of 8 and 16: distillation steps
# against the floor and against torchvision's own loop, memory, compiled backbones, and where the time goes.
#
#   docs/results/gpu_benchmark.sh [OUTPUT] [flags and overrides of tools/benchmark.py]
#
# Leaves batch8.txt, .json, .png, -trace.json (for chrome://tracing) in OUTPUT (runs/gpu-benchmark), and the same of 16.
set -euo pipefail
cd "$(dirname "$0")/../.."
output=${1:-runs/gpu-benchmark}
shift || true
mkdir -p "$output"
for batch in 8 16; do
    python tools/benchmark.py --config configs/voc2007_resnet152_resnet50.yaml --random --batch-size $batch \
        --precision bf16 --methods ktan,fitnet,dln,at,kd --against torchvision --compile \
        --json "$output/batch$batch.json" --chart "$output/batch$batch.png" --profile "$output/batch$batch-trace.json" \
        "$@" | tee "$output/batch$batch.txt"
done
