#!/bin/bash
# What is to be seen on a GPU, in this order, from the repository's root:
#
#   tests       tests/test_cuda.py: the CPU's losses and scores, resumed runs, no step that waits for the device
#   benchmark   ResNet-152 -> ResNet-50, pictures of 600 x 1000 px at most, bf16, batches of 8 and 16, against the floor and
#               torchvision's own loop, with memory and a profile; then with compiled backbones, if there is time
#   photos      photos/gpu.txt and gpu-fcos.txt, as many runs as fit, several at a time, by photos/queue.sh
#
#   bash docs/results/gpu.sh [FOLDER]
#
# FOLDER ($OUT, else runs/gpu) gets two files with the time of the call in their names: log-TIME.txt (versions, command lines,
# how each part ended) and results-TIME.tar.gz (all that is printed and measured), made anew after every part and every 20
# seconds of the photographs. A part that fails or takes too long is ended, and the next one begins. Variables:
#
#   PARTS="tests benchmark photos"   TESTS_SECONDS, BENCHMARK_SECONDS, PHOTOS_SECONDS (240 each)   DEVICE (cuda)   PYTHON
#   DATA, WEIGHTS    as for queue.sh: VOCdevkit, and a folder with efficientnet_lite{0,2}_timm.safetensors
#   RUNS             where the photographs' runs are (runs/gpu-photos): a second call goes on with them
#   JOBS             runs at a time of either list (3)
#   COMMIT           where the repository's history is not at hand
#   TESTS_EXTRA, BENCHMARK_EXTRA, PHOTOS_EXTRA   arguments of pytest, of tools/benchmark.py, of every run
#
# A machine to which 64 MiB travel, 30 of them the repository: the photographs reduced and the student's weights beside
# them (the teachers are in the repository; teacher.weights is given and not read), in a folder that git ignores.
#
#   python docs/results/photos/reduced.py VOCdevkit runs/travel/VOCdevkit       # 17 MiB
#   cp WEIGHTS/efficientnet_lite0_timm.safetensors runs/travel/                 # 9 MiB
#   DATA=runs/travel/VOCdevkit WEIGHTS=runs/travel bash docs/results/gpu.sh
#
# With ten minutes a command: PARTS="tests benchmark" first, then PARTS=photos on the machine while it is warm.
set -u
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-runs/gpu}} device=${DEVICE:-cuda} python=${PYTHON:-python3} runs=${RUNS:-runs/gpu-photos}
results=$(mktemp -d)/results stamp=$(date +%Y%m%d-%H%M%S)
mkdir -p "$out" "$results/benchmark" "$results/photos" "$runs"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

log() { echo "$(date '+%H:%M:%S') $*" | tee -a "$results/log.txt"; }

keep() {  # whole at any moment: the machine may be taken away
  local run
  for run in "$runs"/*/*/metrics.json; do
    [ -e "$run" ] || continue
    run=$(dirname "$run")
    cp "$run/metrics.json" "$results/photos/$(basename "$run").json"
    cp "$run/pictures.npz" "$results/photos/$(basename "$run").npz"
  done
  cp "$runs"/*/*.log "$results/photos/" 2> /dev/null
  tar -czf "$out/.results" -C "$(dirname "$results")" results
  mv "$out/.results" "$out/results-$stamp.tar.gz"
  cp "$results/log.txt" "$out/log-$stamp.txt"
}

part() {  # NAME SECONDS COMMAND...: what it prints goes to NAME.txt
  local name=$1 seconds=$2 began=$SECONDS code
  shift 2
  log "$name, at most $seconds s: $*"
  timeout -k 20 "$seconds" "$@" > "$results/$name.txt" 2>&1 < /dev/null
  code=$?
  log "$name: exit $code after $((SECONDS - began)) s$([ $code != 124 ] || echo ' (out of time)')"
  tail -n 3 "$results/$name.txt"
  keep
}

tests() {
  # cuBLAS sums in one order only with a workspace that is set before its first product.
  CUBLAS_WORKSPACE_CONFIG=:4096:8 DETKT_TEST_DEVICE=$device part tests "${TESTS_SECONDS:-240}" \
    "$python" -m pytest -q -p no:cacheprovider --durations=10 tests/test_cuda.py ${TESTS_EXTRA:-}
}

benchmark() {
  local end=$((SECONDS + ${BENCHMARK_SECONDS:-240})) name batch compile
  for name in batch8 batch16 batch8-compiled; do
    batch=${name#batch} compile=
    [ "$batch" = "${batch%-compiled}" ] || compile=--compile
    [ $((end - SECONDS)) -gt 5 ] || { log "benchmark/$name: no time left"; continue; }
    part "benchmark/$name" $((end - SECONDS)) "$python" tools/benchmark.py --quiet \
      --config configs/voc2007_resnet152_resnet50.yaml --random --batch-size "${batch%-compiled}" --precision bf16 \
      --device "$device" --methods ktan,fitnet,dln,at,kd --against torchvision --repetitions 6 $compile \
      --json "$results/benchmark/$name.json" --chart "$results/benchmark/$name.png" \
      --profile "$results/benchmark/$name-trace.json" ${BENCHMARK_EXTRA:-}
  done
}

photos() {
  local seconds=${PHOTOS_SECONDS:-240} photos=docs/results/photos queues=() list config number
  [ -n "${DATA:-}" ] && [ -n "${WEIGHTS:-}" ] || { log "photos: DATA and WEIGHTS are not set"; return; }
  log "photos, for $seconds s, ${JOBS:-3} runs at a time of either list, in $runs"
  for number in $(seq "${JOBS:-3}"); do
    for list in gpu gpu-fcos; do
      config=configs/photos_lite2_lite0.yaml
      [ $list = gpu ] || config=$photos/fcos.yaml
      # A run that is ended has saved where it is (without workers, which would be ended with it). Each list has pictures
      # of its own size in its cache.
      CONFIG=$config RUNS=$runs/$list COPIES=$results/photos PYTHON=$python NICE=${NICE:-0} \
        EXTRA="train.device=$device train.workers=0 ${PHOTOS_EXTRA:-}" \
        timeout -k 30 "$seconds" bash $photos/queue.sh $photos/$list.txt >> "$results/photos/queue.txt" 2>&1 < /dev/null &
      queues+=($!)
    done
  done
  while kill -0 "${queues[@]}" 2> /dev/null; do
    sleep 5
    [ $((SECONDS % 20)) -ge 5 ] || keep
  done
  keep
  log "photos: $(find "$results/photos" -name '*.json' | wc -l) runs are finished"
  for list in gpu gpu-fcos; do
    compgen -G "$runs/$list/*-plain-*/metrics.json" > /dev/null || continue
    part "photos/$list" 60 "$python" tools/compare.py --runs "$runs/$list"/*/metrics.json --against "$list-plain"
  done
}

{
  echo "commit ${COMMIT:-$(git describe --always --dirty 2> /dev/null || echo unknown)}, $(date -Is)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null || echo "no nvidia-smi"
  "$python" -c "
import json, os, torch, timm
from detkt.base.device import resolve_device
from detkt.engine.run_folder import versions
print(json.dumps({**versions(resolve_device('$device')), 'timm': timm.__version__, 'cuda': torch.version.cuda,
                  'cudnn': torch.backends.cudnn.version(), 'cores': os.cpu_count()}))"
} 2>&1 | tee "$results/log.txt"
for name in ${PARTS:-tests benchmark photos}; do $name; done
keep
