#!/usr/bin/env bash
# Everything that needs a GPU, for a machine with neither Node nor network: checks, trains and measures what a bundle holds.
#   where Node is:  npm run build && npm run build:cuda && node scripts/bundle.mjs .gpu/densecl.tar.xz --tests
#                   and class folders of images as .gpu/images/{train,val}, for the training run; a VOC tree with masks as .gpu/segmentation
#   on the GPU:     bash bench/gpu.sh [check] [train] [tune] [bench] [steps] [variants] [data] [study] [sanitize]      all of them without a word
# Results go to $OUT (default: gpu-results): logs, and the JSON files for bench/results.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$here/gpu-results}
kit=${KIT:-$here/.gpu}
parts=${*:-check train tune bench steps variants data study sanitize}
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

if wanted tune; then
  say "tiles of convolutions, timed"
  timeout 300 "$home/densecl" bench tune --device cuda 2>&1 | tee "$out/tune.txt"
  cp "$home"/src/ops/tuning/*.json "$out/"
fi

if wanted bench; then
  say "ops beside PyTorch"
  timeout 420 "$home/densecl" bench --device cuda --peer --save "$out/gpu-ops.json" 2>&1 | tee "$out/bench.txt"
  say "blocks and the contrastive loss beside torch.compile"
  timeout 240 "$home/densecl" bench block infoNce --device cuda --peer compile --save "$out/gpu-ops-compile.json" 2>&1 | tee "$out/bench-compile.txt"
  say "convolutions by the kernels of Ampere"
  DENSECL_CAPABILITY=80 timeout 240 "$home/densecl" bench conv2d infoNce --device cuda --save "$out/gpu-ops-sm_80.json" 2>&1 | tee "$out/bench-sm_80.txt"
fi

step() { (cd "$home" && timeout 100 "$node" dist/bench/steps/densecl.js --device cuda:0 --depth 50 --image 224 --batch "$1" --queue 65536 --hidden 2048 --steps 20 "${@:2}"); }

if wanted steps; then
  say "steps beside PyTorch, eager and compiled"
  (cd "$home" && timeout 480 "$node" dist/bench/run.js steps) 2>&1 | tee "$out/steps.txt"
  say "where a step goes"
  (cd "$home" && timeout 100 "$node" dist/bench/steps/profile.js --device cuda:0 --depth 50 --image 224 --batch 256 --queue 65536 --hidden 2048 --steps 3 --graph false) 2>&1 | tee "$out/profile.txt"
fi

if wanted variants; then
  say "one step in every form: levels of fusion, with and without the graph, by the kernels of Ampere"
  for batch in 256 32; do
    for level in pointwise epilogue full; do
      for graph in true false; do echo "{\"batch\": $batch, \"fusion\": \"$level\", \"graph\": $graph, \"result\": $(step $batch --fusion $level --graph $graph)}"; done
    done
    for level in epilogue full; do echo "{\"batch\": $batch, \"fusion\": \"$level\", \"capability\": 80, \"result\": $(DENSECL_CAPABILITY=80 step $batch --fusion $level)}"; done
  done 2>&1 | tee "$out/gpu-variants.jsonl"
fi

if wanted data && [ -d "$kit/images/train" ]; then
  say "from JPEG files"
  timeout 120 "$home/densecl" bench data --device cuda --data "$kit/images/train" --batch 256 --workers 1,4,8,15 --seconds 8 --save "$out/gpu-loading.json" 2>&1 | tee "$out/data.txt"
  timeout 200 "$home/densecl" pretrain --data "$kit/images/train" --depth 50 --image-size 224 --batch-size 256 --epochs 8 --queue-length 65536 --device cuda --workers 15 --cache-megabytes 0 --log-every 5 --knn-every 0 --out "$work/files" --overwrite 2>&1 | tail -12 | tee "$out/from-files.txt"
  say "from JPEG files, PyTorch: torchvision loader and eager step"
  timeout 240 "$DENSECL_PYTHON" "$home/bench/peers/densecl.py" files "$kit/images/train" --depth 50 --image 224 --batch 256 --queue 65536 --hidden 2048 --workers 15 --steps 30 --device cuda --amp --channels-last 2>&1 | tee "$out/from-files-pytorch.txt"
fi

if wanted study && [ -d "$kit/images/train" ]; then
  say "MoCo v2 and DenseCL with equal budgets, and what each is worth"
  segmentation=()
  [ -d "$kit/segmentation/JPEGImages" ] && segmentation=(--segmentation "$kit/segmentation")
  timeout "${STUDY_SECONDS:-560}" "$home/densecl" study --images "$kit/images" "${segmentation[@]}" --size gpu --seeds "${SEEDS:-3}" --out "$work/study" epochs="${STUDY_EPOCHS:-30}" workers=15 2>&1 | tee "$out/study.txt"
  cp "$work"/study/study.* "$out/" 2>/dev/null
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
