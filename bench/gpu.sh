#!/usr/bin/env bash
# Everything that needs a GPU, for a machine with neither Node nor network: checks, trains and measures what a bundle holds.
#   where Node is:  npm run build && npm run build:cuda && node scripts/bundle.mjs .gpu/densecl.tar.xz --tests
#                   and class folders of images as .gpu/images/{train,val}, for the training run
#   on the GPU:     bash bench/gpu.sh [check] [train] [bench] [steps] [sanitize]      all of them without a word
# Results go to $OUT (default: gpu-results): logs, and the JSON files for bench/results.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$here/gpu-results}
kit=${KIT:-$here/.gpu}
parts=${*:-check train bench steps sanitize}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -C "$work" -xJf "$kit/densecl.tar.xz"
home=$work/densecl
export DENSECL_PYTHON=${DENSECL_PYTHON:-python3} DENSECL_RESULTS=$out
node=$home/bin/node
commit=$(git -C "$here" rev-parse --short HEAD 2>/dev/null || echo unknown)
export DENSECL_COMMIT=$commit
failed=0

say() { printf '\n== %s (%s)\n' "$1" "$(date -u +%H:%M:%S)"; }
wanted() { [[ " $parts " == *" $1 "* ]]; }

say "machine, commit $commit"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
"$home/densecl" doctor | tee "$out/doctor.txt"

if wanted check; then
  say "every op, step and transfer on cuda:0 against the CPU"
  (cd "$home" && timeout 420 "$node" dist/tests/run.js devices) 2>&1 | tee "$out/check.txt" | grep -vE '^ +at ' | tail -60
  [ "${PIPESTATUS[0]}" = 0 ] && grep -q '^ok .*ops on cuda:0' "$out/check.txt" || failed=1
fi

if wanted train && [ -d "$kit/images/train" ]; then
  # The same run in mixed precision and in f32: losses side by side, kNN before and after.
  for precision in bf16 f32; do
    say "pre-training ResNet-18 in $precision"
    timeout "${TRAIN_SECONDS:-200}" "$home/densecl" pretrain --data "$kit/images/train" --knn-data "$kit/images/val" --depth 18 --image-size 96 --batch-size 256 --epochs "${EPOCHS:-200}" \
      --queue-length 4096 --feat-dim 128 --lr 0.06 --norm-groups 8 --device cuda --precision $precision --log-every 20 --knn-every 50 --workers 15 --out "$work/run-$precision" --overwrite 2>&1 | tail -25
    for file in metrics.jsonl config.yaml report.json; do cp "$work/run-$precision/$file" "$out/train-$precision-$file" 2>/dev/null; done
  done
fi

if wanted bench; then
  say "ops beside PyTorch"
  timeout 420 "$home/densecl" bench --device cuda --peer --save "$out/gpu-ops.json" 2>&1 | tee "$out/bench.txt"
fi

if wanted steps; then
  say "steps beside PyTorch, eager and compiled"
  (cd "$home" && timeout 420 "$node" dist/bench/run.js steps) 2>&1 | tee "$out/steps.txt"
  say "where a step goes"
  (cd "$home" && timeout 100 "$node" dist/bench/steps/profile.js --device cuda:0 --depth 50 --image 224 --batch 256 --queue 65536 --hidden 2048 --steps 3) 2>&1 | tee "$out/profile.txt"
fi

if wanted sanitize && command -v compute-sanitizer >/dev/null; then
  say "compute-sanitizer on a short step"
  for tool in memcheck racecheck; do
    (cd "$home" && timeout 200 compute-sanitizer --tool $tool --error-exitcode 9 "$node" dist/bench/steps/densecl.js --device cuda:0 --depth 18 --image 32 --batch 4 --queue 64 --hidden 32 --steps 1) 2>&1 | tee "$out/$tool.txt" | tail -4
    [ "${PIPESTATUS[0]}" = 0 ] || failed=1
  done
fi

say "done, $([ $failed = 0 ] && echo 'all checks passed' || echo 'with FAILURES')"
exit $failed
