#!/bin/bash
# The photographs' runs, one after the other, from the repository's root:
#
#   DATA=.../VOCdevkit WEIGHTS=.../weights bash docs/results/photos/queue.sh docs/results/photos/plain.txt
#
# A line of the list is NAME and train_det.py's arguments, in which RUNS and WEIGHTS stand for these folders. Each run goes to RUNS/NAME (RUNS: runs/photos); one that has
# its metrics.json there is skipped, one that was stopped goes on, and what finished runs scored is copied to COPIES/NAME.json
# and NAME.npz (COPIES: docs/results/photos). Several lists, or one list given to several queues at once, are no trouble: a run that
# another queue holds is left to it. EXTRA: arguments of every run, after its own; with --trial take a RUNS of its own, nothing is copied. Without DATA and WEIGHTS the config says all of data and nets: those of the shapes pair, with
# CONFIG=configs/shapes.yaml RUNS=runs/shapes COPIES=docs/results/shapes/modern, are in docs/results/shapes/modern.txt.
set -u
RUNS=${RUNS:-runs/photos} COPIES=${COPIES:-docs/results/photos} PYTHON=${PYTHON:-python} CONFIG=${CONFIG:-configs/photos_lite2_lite0.yaml}
# Large maps come and go with every step: kept by the process, they cost no page faults (a fifth of the time else).
export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456
mkdir -p "$RUNS"
cat "$@" | sed 's/#.*//' | while read -r name arguments; do
  [ -n "$name" ] && [ ! -e "$RUNS/$name/metrics.json" ] || continue
  (
    flock -n 9 || exit 0
    if [ -e "$RUNS/$name/last.pt" ]; then
      set -- --resume "$RUNS/$name"
    else
      set -- --overwrite --output "$RUNS/$name" --config "$CONFIG"
      [ -z "${DATA:-}" ] || set -- "$@" --data-root "$DATA" "data.cache=$RUNS/cache"
      [ -z "${WEIGHTS:-}" ] || set -- "$@" "teacher.weights=$WEIGHTS/efficientnet_lite2_timm.safetensors" \
        "student.weights=$WEIGHTS/efficientnet_lite0_timm.safetensors"
      arguments=${arguments//RUNS/$RUNS}
      set -- "$@" ${arguments//WEIGHTS/${WEIGHTS:-}} ${EXTRA:-}
    fi
    nice -n "${NICE:-10}" "$PYTHON" tools/train_det.py --quiet "$@" < /dev/null >> "$RUNS/$name.log" 2>&1
    code=$?
    if [ $code = 0 ] && [[ " ${EXTRA:-} " != *" --trial "* ]]; then
      cp "$RUNS/$name/metrics.json" "$COPIES/$name.json" && cp "$RUNS/$name/pictures.npz" "$COPIES/$name.npz"
      code=$?
    fi
    echo "$(date '+%H:%M:%S') $name: exit $code"
  ) 9> "$RUNS/$name.lock"
done
