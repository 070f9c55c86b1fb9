#!/usr/bin/env bash
# What needs a GPU, in stages of at most 8 minutes, the most valuable first, for a machine with neither Node, git, xz nor network.
#
#   where Node is:  npm run build && DENSECL_ARCHITECTURES=90a-real npm run build:cuda        the GPU's own: five architectures are larger
#                   node scripts/bundle.mjs .gpu/densecl.tar.xz --tests                       34 MiB (Python opens it where xz is not); .tar.gz 48
#                   class folders of real images as .gpu/images/{train,val}                   100 + 25 a class of imagenette at 224 px: 16 MB;
#                                                                                             for study a VOC tree with masks as .gpu/segmentation
#   on the GPU:     bash bench/gpu.sh [stage ...]      stages by number or word; without one, 1 to 7 until $BUDGET seconds (1700) have passed
#   anywhere:       bash bench/gpu.sh --rehearse [stage ...]   every stage at tiny sizes on simt (npm run build:simt), nothing of this machine in reach
#
#   1 light     every test of devices, with Ampere's kernels and with Hopper's, against the CPU
#   2 big       sizes that fill the machine, Ampere's kernels against Hopper's; steps with and without the graph
#   3 steps     the whole step: ours and PyTorch eager in turn, then compiled; levels of fusion; where the time goes
#   4 learn     pre-training in bf16 on real images, which must gain 20 points of kNN
#   5 sanitize  compute-sanitizer's four tools on a short step, then ncu
#   6 tune      tiles of convolutions, timed
#   7 ops       ops beside PyTorch
#   8 data      from JPEG files, ours, by nvJPEG where it is, and PyTorch's     only when asked for
#   9 study     $ARMS of densecl study, $SEEDS (1) seeds     only when asked for
#
# $OUT (default gpu-results) gets summary.tsv: stage, part, result, exit code, seconds, why; report.txt, the short form; results.tgz, everything
# else, renewed after every part; and of the part that is running part.txt and its rows. A later call adds to them. Exit code 0: all
# passed; 1: something failed or was skipped; 2: this call could not be made. In a rehearsal what a machine without a GPU need not have
# (compute-sanitizer, ncu, PyTorch, its torch.compile) is skipped without being counted. Where Hopper's kernels fail and Ampere's do
# not, later stages of the same call take Ampere's (DENSECL_CAPABILITY=80, which can be given too). DENSECL_SYNC=1 before a call makes
# a CUDA error name its op.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
words=(light big steps learn sanitize tune ops data study)

leave() {
  printf 'gpu.sh: %s\n' "$@" >&2
  exit 2
}

rehearse=${DENSECL_REHEARSAL:-}
picked=()
for word in "$@"; do
  found=
  for i in "${!words[@]}"; do
    if [ "$word" = "${words[i]}" ] || [ "$word" = $((i + 1)) ]; then found=${words[i]}; fi
  done
  if [ -n "$found" ]; then picked+=("$found")
  elif [ "$word" = --rehearse ]; then rehearse=1
  else leave "there is no stage $word" "expected some of 1 ${words[0]}, 2 ${words[1]}, 3 ${words[2]}, 4 ${words[3]}, 5 ${words[4]}, 6 ${words[5]}, 7 ${words[6]}, 8 ${words[7]}, 9 ${words[8]}, or --rehearse"
  fi
done
whole() { [[ $2 =~ ^[1-9][0-9]*$ ]] || leave "$1 is $2: expected a whole number of at least 1"; }
for setting in BUDGET EPOCHS SEEDS STUDY_EPOCHS; do [ -z "${!setting:-}" ] || whole "$setting" "${!setting}"; done
budget=${BUDGET:-999999}
if [ ${#picked[@]} = 0 ]; then
  if [ -n "$rehearse" ]; then picked=("${words[@]}"); else picked=("${words[@]:0:7}"); budget=${BUDGET:-1700}; fi
fi
out=${OUT:-$here/gpu-results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || leave "the folder $out cannot be made"

# A rehearsal starts again with an empty environment and a PATH of plain tools: no Node, git, xz or compiler.
if [ -n "$rehearse" ] && [ -z "${DENSECL_REHEARSAL:-}" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  KIT=${KIT:-$scratch/kit}
  mkdir -p "$KIT" && KIT=$(cd "$KIT" && pwd) || leave "the folder $KIT cannot be made"
  if [ ! -f "$KIT/densecl.tar" ]; then
    node "$here/scripts/bundle.mjs" "$KIT/densecl.tar" --tests --addon build-simt >"$scratch/kit.txt" 2>&1 && node "$here/dist/bench/images.js" "$KIT/images" >>"$scratch/kit.txt" 2>&1 || leave "$(cat "$scratch/kit.txt")" "a rehearsal needs npm run build and npm run build:simt"
  fi
  mkdir "$scratch/bin"
  for tool in bash cat cksum cp cut date dirname env grep gzip head mkdir mktemp mv rm sed sh sleep tail tar timeout uname; do ln -s "$(command -v "$tool")" "$scratch/bin/$tool"; done
  python=${DENSECL_PYTHON:-/usr/bin/python3}
  [ ! -x "$python" ] || { printf '#!/bin/sh\nexec %q "$@"\n' "$python" >"$scratch/bin/python3" && chmod +x "$scratch/bin/python3"; }
  # Stand-ins of tools, for tests of this script.
  [ -z "${REHEARSAL_TOOLS:-}" ] || ln -s "$REHEARSAL_TOOLS"/* "$scratch/bin/"
  cp "$0" "$scratch/gpu.sh"
  env -i PATH="$scratch/bin" OUT="$out" KIT="$KIT" WORK="$scratch/work" DENSECL_REHEARSAL=1 DENSECL_COMMIT="${DENSECL_COMMIT:-}" BUDGET="${BUDGET:-}" bash "$scratch/gpu.sh" "${picked[@]}"
  exit $?
fi

kit=${KIT:-$here/.gpu}
work=${WORK:-/tmp/densecl-gpu}
[ ! -d "$kit" ] || kit=$(cd "$kit" && pwd)
mkdir -p "$work" && work=$(cd "$work" && pwd) || leave "the folder $work cannot be made"
home=$work/densecl
node=$home/bin/node
python=${DENSECL_PYTHON:-python3}
device=cuda:0
[ -z "$rehearse" ] || { device=simt && export DENSECL_ADDON=$home/build-simt/Release/densecl.node; }

# Unpacked once a machine.
archive=
for name in densecl.tar.gz densecl.tar.xz densecl.tar; do
  if [ -f "$kit/$name" ] && { [ -z "$archive" ] || [ "$kit/$name" -nt "$archive" ]; }; then archive=$kit/$name; fi
done
[ -n "$archive" ] || leave "there is no bundle in $kit" "expected densecl.tar.gz, densecl.tar.xz or densecl.tar; node scripts/bundle.mjs .gpu/densecl.tar.xz --tests makes it"
sum=$(cksum <"$archive")
if [ "$(cat "$work/unpacked" 2>/dev/null)" != "$sum" ]; then
  rm -rf "$home"
  why=$(tar -C "$work" -xf "$archive" 2>&1) || why="$why $(python3 -m tarfile -e "$archive" "$work" 2>&1)" || leave "$archive cannot be unpacked: $why"
  [ -x "$node" ] || leave "$archive holds no bundle: densecl/bin/node is missing"
  printf '%s\n' "$sum" >"$work/unpacked"
fi
export DENSECL_COMMIT=${DENSECL_COMMIT:-$(cat "$home/COMMIT" 2>/dev/null || echo unknown)}
export DENSECL_PYTHON=$python DENSECL_RESULTS=$out TORCHINDUCTOR_CACHE_DIR=$work/inductor DENSECL_TEST_DEVICE=$device

results=$(mktemp -d) || leave "no temporary folder can be made"
trap 'rm -rf "$results"' EXIT
mkdir "$results/results"
[ ! -f "$out/results.tgz" ] || tar -C "$results" -xzf "$out/results.tgz" || leave "$out/results.tgz of an earlier call cannot be read: move it away"
[ -f "$out/summary.tsv" ] || printf 'stage\tpart\tresult\tcode\tseconds\twhy\n' >"$out/summary.tsv"
troubles=0
stage=machine
stage_end=$budget

pack() {
  tar -C "$results" -czf "$out/results.part" results 2>/dev/null || (cd "$results" && "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1], "w:gz").add("results")' "$out/results.part") || { echo "gpu.sh: results cannot be packed" >&2; return 1; }
  mv "$out/results.part" "$out/results.tgz"
}
# record PART RESULT CODE SECONDS [WHY]
record() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$stage" "$1" "$2" "$3" "$4" "${5:-}" >>"$out/summary.tsv"
  printf '%s %s: %s%s, %s s\n' "$stage" "$1" "$2" "${5:+, $5}" "$4" | tee_report
}
tee_report() { while IFS= read -r line; do printf '%s\n' "$line"; printf '%s\n' "$line" >>"$out/report.txt"; done; }
# skip PART WHY [tool]: `tool` marks what a rehearsal does not count.
skip() {
  [ -n "$rehearse" ] && [ "${3:-}" = tool ] || troubles=$((troubles + 1))
  record "$1" skipped - 0 "$2"
}
# keep PART: what the part that has ended wrote goes to the results.
keep() {
  local file
  for file in "$out"/part.*; do [ ! -f "$file" ] || mv "$file" "$results/results/$stage-$1.${file##*.}"; done
  for file in "$out"/*-steps.json; do [ ! -f "$file" ] || mv "$file" "$results/results/"; done
  pack
}
# part NAME SECONDS COMMAND...: runs in the bundle's folder, is killed for certain, and is in summary.tsv with exit code and seconds.
part() {
  local name=$1 limit=$2 began=$SECONDS code result=ok why=
  shift 2
  ((limit <= stage_end - SECONDS - 6)) || limit=$((stage_end - SECONDS - 6))
  if ((limit < 5)); then
    skip "$name" "no time is left"
    return 0
  fi
  printf '\n== %s %s, at most %s s: %s\n' "$stage" "$name" "$limit" "$*"
  printf '# %s\n' "$*" >"$out/part.txt"
  # Within the limit a hung test file is killed by its runner, which prints what it said.
  (cd "$home" && DENSECL_TEST_SECONDS=$((limit > 20 ? limit - 6 : limit)) exec timeout -k 5 "$limit" "$@") >>"$out/part.txt" 2>&1
  code=$?
  case $code in
    0) ;;
    124 | 137) result=killed why="after $limit s" ;;
    *) result=failed ;;
  esac
  grep -vE '^ +at |^#' "$out/part.txt" | tail -n $((code == 0 ? 12 : 60)) | cut -c 1-240
  if [ $code != 0 ]; then
    troubles=$((troubles + 1))
    # Of a failed test its name, not the place in the code of whoever noticed.
    [ -n "$why" ] || why=$(grep -vE '^ +at ' "$out/part.txt" | grep -E 'Error|FAIL|densecl:|ERROR' | tail -n 1 | cut -c 1-160)
  fi
  record "$name" $result $code $((SECONDS - began)) "${why//$'\t'/ }"
  [ $code != 0 ] || grep -vE '^#|^ |^\{|^ok ' "$out/part.txt" | tail -n 4 | cut -c 1-200 | sed 's/^/    /' >>"$out/report.txt"
  keep "$name"
  return $code
}

runs=5
step=(--device $device --depth 50 --image 224 --queue 65536 --hidden 2048 --steps 20)
short=(--device $device --depth 18 --image 32 --batch 4 --queue 1024 --hidden 64 --steps 1)
both=256,32 small=32
if [ -n "$rehearse" ]; then
  runs=1
  step=(--device $device --depth 18 --base 8 --image 32 --queue 64 --hidden 32 --steps 1)
  short=("${step[@]}" --batch 2)
  both=2 small=2
fi
mine=("$node" dist/bench/steps/densecl.js)
rows=(--rows "$out/part.jsonl")
suite=(env DENSECL_TEST_RUNS=$runs "$node" dist/tests/run.js)
# Files that the tests run on simt themselves: a rehearsal sees that they are there, and runs those of the ops.
listed=("${suite[@]}")
[ -z "$rehearse" ] || listed+=(--list)

printf '\n%s, commit %s, %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S')" "$DENSECL_COMMIT" "$(uname -r)" | tee_report
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee_report
part doctor 60 "$home/densecl" doctor
doctor=$(cat "$results/results/machine-doctor.txt")
if [[ $doctor != *$'\n'"$device "* ]]; then
  for stage in "${picked[@]}"; do record all refused - 0 "there is no $device: $(grep -E '^cuda ' <<<"$doctor" | head -n 1)"; done
  pack
  exit 1
fi
printf '%s\n' "$(grep "^$device " <<<"$doctor")" | tee_report
capabilities=(80)
[[ $device == simt || $doctor == *'compute capability 9.0'* ]] && capabilities=(80 90)
[ -z "${DENSECL_CAPABILITY:-}" ] || capabilities=("$DENSECL_CAPABILITY")
torch=$("$python" -c 'import torch, torchvision; print(torch.__version__, hasattr(torch, "compile"))' 2>/dev/null) || torch=
compiles=${torch##* } torch=${torch%% *}
failed80=0 failed90=0
# by CAPABILITY NAME SECONDS COMMAND...: a part with the kernels of that capability
by() {
  local capability=$1 name=$2 limit=$3
  shift 3
  part "$name-sm_$capability" "$limit" env DENSECL_CAPABILITY="$capability" "$@" || if [ "$capability" = 80 ]; then failed80=1; else failed90=1; fi
}
without_images() {
  [ -d "$kit/images/train" ] && [ -d "$kit/images/val" ] && return 1
  skip "$1" "no images: $kit/images/train and $kit/images/val are not there"
}

stage_light() {
  local capability check=("$home/densecl" doctor --check --device "$device")
  # Sizes of products go by the multiprocessors.
  [ -z "$rehearse" ] || check=(env DENSECL_MULTIPROCESSORS=1 "${check[@]}")
  # What a user's first run does by itself; the training of later stages obeys the verdict.
  part check 120 "${check[@]}"
  # As many files at a time as there are cores: most of their time is the reference's, on the host.
  for capability in "${capabilities[@]}"; do by "$capability" tests 150 "${listed[@]}" devices; done
  [ -z "$rehearse" ] || part ops 60 "${suite[@]}" ops/devices
}

stage_big() {
  local capability graph
  part big 240 "${listed[@]}" ops/big || failed90=1
  # As few multiprocessors as simt has: a block's second tile, rings that wrap.
  part hopper-few 60 env DENSECL_MULTIPROCESSORS=4 "${listed[@]}" ops/hopper || failed90=1
  for capability in "${capabilities[@]}"; do
    for graph in false true; do by "$capability" "step-graph-$graph" 60 "${mine[@]}" "${step[@]}" --batch $small --graph $graph "${rows[@]}"; done
    same_loss "$capability"
  done
}

# Recorded or not, a step is the same kernels in the same order: the loss after some steps has the same digits.
same_loss() {
  local graph losses=() file
  for graph in false true; do
    file=$results/results/big-step-graph-$graph-sm_$1.jsonl
    [[ -f $file && $(cat "$file") =~ \"loss\":([^,}]+) ]] || return # the part has failed, which is said
    losses+=("${BASH_REMATCH[1]}")
  done
  if [ "${losses[0]}" = "${losses[1]}" ]; then record "same-loss-sm_$1" ok 0 0 "${losses[0]}"
  else
    troubles=$((troubles + 1))
    record "same-loss-sm_$1" failed 1 0 "loss ${losses[0]} op by op, ${losses[1]} as a graph"
  fi
}

stage_steps() {
  local sides=densecl,eager rounds=2 level
  [ -n "$torch" ] || { sides=densecl && skip eager "no PyTorch: $python cannot import torch and torchvision" tool; }
  [ -z "$rehearse" ] || rounds=1
  part turns 280 "$node" dist/bench/run.js steps --device $device --sides $sides --rounds $rounds --seconds 90 "${rows[@]}"
  if [ -z "$torch" ]; then skip compile "no PyTorch" tool
  elif [ "$compiles" != True ]; then skip compile "PyTorch $torch has no torch.compile" tool
  else
    part compile 160 "$node" dist/bench/run.js steps --device $device --sides compile --rounds 1 --seconds 150 "${rows[@]}"
    [ -n "$rehearse" ] || part reduce-overhead 110 "$node" dist/bench/run.js steps --device $device --sides reduce-overhead --rounds 1 --seconds 100 "${rows[@]}"
  fi
  for level in full pointwise; do part "fusion-$level" 45 "${mine[@]}" "${step[@]}" --batch $both --fusion $level "${rows[@]}"; done
  [[ " ${capabilities[*]} " != *' 90 '* ]] || by 90 fp8-keys 45 "${mine[@]}" "${step[@]}" --batch $both --key-precision fp8 "${rows[@]}"
  part no-graph 45 "${mine[@]}" "${step[@]}" --batch $both --graph false "${rows[@]}"
  [ ${#capabilities[@]} = 1 ] || by 80 step 45 "${mine[@]}" "${step[@]}" --batch $both "${rows[@]}"
  part profile 60 "$node" dist/bench/steps/profile.js "${step[@]}" --batch $both
}

stage_learn() {
  without_images bf16 && return
  # On a CPU, of 32 channels: 18.8 % before, 43.2 % after 100 epochs of 100 + 25 images a class.
  local settings=(--preset small --base-channels 64 --queue-length 512 --precision bf16 --epochs "${EPOCHS:-300}" --knn-every 50 --log-every 50 --checkpoint-steps 1000000 --checkpoint-every 1000000 --workers 15)
  [ -z "$rehearse" ] || settings=(--preset small --depth 18 --base-channels 4 --image-size 32 --batch-size 8 --norm-groups 2 --queue-length 16 --feat-dim 16 --hidden 16 --precision bf16 --epochs 1 --knn-every 0 --log-every 1 --workers 1)
  local file
  part bf16 440 "$home/densecl" pretrain --data "$kit/images/train" --knn-data "$kit/images/val" --device $device "${settings[@]}" --out "$work/learn" --overwrite
  for file in metrics.jsonl config.yaml report.json; do [ ! -f "$work/learn/$file" ] || cp "$work/learn/$file" "$results/results/learn-$file"; done
  judge_learning "$results/results/learn-bf16.txt"
  pack
}
# The last line with both accuracies: 20 points are what training must add to the untrained network.
judge_learning() {
  local line gain
  line=$(grep -E '^knn +[0-9.]+ % before, [0-9.]+ % after' "$1" | tail -n 1)
  if [[ ! $line =~ ([0-9]+)\.([0-9])\ %\ before,\ ([0-9]+)\.([0-9])\ %\ after ]]; then
    troubles=$((troubles + 1))
    record gain failed 1 0 "no kNN accuracy was printed"
    return
  fi
  gain=$((10 * BASH_REMATCH[3] + BASH_REMATCH[4] - 10 * BASH_REMATCH[1] - BASH_REMATCH[2]))
  if [ -n "$rehearse" ]; then record gain ok 0 0 "$line: the training ran, a rehearsal judges no more"
  elif ((gain >= 200)); then record gain ok 0 0 "$line"
  else
    troubles=$((troubles + 1))
    record gain failed 1 0 "$line: expected a gain of 20 points"
  fi
}

stage_sanitize() {
  local tool
  # Without it first: what fails alone needs no sanitizer. Without the graph each tensor is a block of its own, and an overrun leaves it.
  part plain 60 "${mine[@]}" "${short[@]}" --graph false
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck synccheck racecheck initcheck; do part $tool 100 compute-sanitizer --tool $tool --error-exitcode 9 "${mine[@]}" "${short[@]}" --graph false; done
    part memcheck-graph 80 compute-sanitizer --tool memcheck --error-exitcode 9 "${mine[@]}" "${short[@]}"
  else
    for tool in memcheck synccheck racecheck initcheck memcheck-graph; do skip $tool "no compute-sanitizer on the PATH" tool; done
  fi
  if command -v ncu >/dev/null; then
    part ncu 150 ncu --clock-control none --set full -k 'regex:productKernel|contrastKernel|applyKernel|reduceKernel' -s 400 -c 24 -o "$results/results/step" "${mine[@]}" "${step[@]}" --batch 64 --steps 1 --graph false
  else
    skip ncu "no ncu on the PATH" tool
  fi
}

stage_tune() {
  local only=()
  [ -z "$rehearse" ] || only=(--layer layer3.1.conv1 --batch 1)
  part tiles 400 "$home/densecl" bench tune --device $device "${only[@]}" --save "$out/part.json"
}

stage_ops() {
  local peer=(--peer) compiled=(--peer compile) only=()
  if [ -z "$torch" ]; then
    peer=() compiled=()
    skip peer "no PyTorch: $python cannot import torch and torchvision" tool
  fi
  [ -z "$rehearse" ] || only=(--precision bf16 --batch 1)
  if [ -n "$rehearse" ]; then
    part conv2d 60 "$home/densecl" bench conv2d --layer layer3.1.conv1 --device $device "${only[@]}" "${peer[@]}" --save "$out/part.json"
    part rest 60 "$home/densecl" bench relu maxPool2d linear l2Normalize enqueue --device $device "${only[@]}" "${peer[@]}" --save "$out/part.json"
    return
  fi
  part conv2d 180 "$home/densecl" bench conv2d --device $device "${peer[@]}" --save "$out/part.json"
  part step 80 "$home/densecl" bench infoNce sgd augment denseMatch enqueue --device $device "${peer[@]}" --save "$out/part.json"
  part norm 80 "$home/densecl" bench batchNorm --device $device "${peer[@]}" --save "$out/part.json"
  [ "$compiles" != True ] && skip compiled "PyTorch ${torch:-is not there and} has no torch.compile" tool || part compiled 100 "$home/densecl" bench block infoNce --device $device "${compiled[@]}" --save "$out/part.json"
  [ ${#capabilities[@]} = 1 ] || by 80 conv2d 100 "$home/densecl" bench conv2d infoNce --device $device --save "$out/part.json"
  part rest 80 "$home/densecl" bench add avgPool2d concat crossEntropy dropout gatherRows l2Normalize linear maxPool2d relu resizeBilinear scale --device $device "${peer[@]}" --save "$out/part.json"
}

stage_data() {
  without_images loading && return
  local sizes=(--batch 256 --workers 1,4,8,15 --seconds 8) settings=(--depth 50 --image-size 224 --batch-size 256 --epochs 8 --queue-length 65536 --workers 15 --log-every 5)
  local peer=(--depth 50 --image 224 --batch 256 --queue 65536 --hidden 2048 --workers 15 --steps 30 --device cuda --amp --channels-last)
  if [ -n "$rehearse" ]; then
    sizes=(--batch 8 --image-size 32 --workers 1 --seconds 0.2)
    settings=(--depth 18 --base-channels 4 --image-size 32 --batch-size 8 --epochs 1 --queue-length 16 --feat-dim 16 --hidden 16 --workers 1 --log-every 1)
    peer=(--depth 18 --base 8 --image 32 --batch 4 --queue 64 --hidden 32 --workers 1 --steps 1)
  fi
  part loading 120 "$home/densecl" bench data --device $device --data "$kit/images/train" "${sizes[@]}" --save "$out/part.json"
  if grep -qE '^nvjpeg +nvJPEG [0-9]' "$results/results/machine-doctor.txt"; then
    part loading-nvjpeg 120 "$home/densecl" bench data --decode gpu --device $device --data "$kit/images/train" "${sizes[@]}" --save "$out/part.json"
    judge_loading "$results/results/data-loading-nvjpeg.txt"
    part files-nvjpeg 160 "$home/densecl" pretrain --decode gpu --data "$kit/images/train" --knn-data "$kit/images/val" --device $device "${settings[@]}" --cache-megabytes 0 --checkpoint-steps 1000000 --out "$work/files-nvjpeg" --overwrite
  else
    skip nvjpeg "no nvJPEG: doctor says why" tool
  fi
  part files 160 "$home/densecl" pretrain --data "$kit/images/train" --knn-data "$kit/images/val" --device $device "${settings[@]}" --cache-megabytes 0 --checkpoint-steps 1000000 --out "$work/files" --overwrite
  if [ -n "$torch" ]; then part files-pytorch 160 "$python" bench/peers/densecl.py files "$kit/images/train" "${peer[@]}"; else skip files-pytorch "no PyTorch" tool; fi
}

# Of the numbers of workers the fastest must reach 10,000 images a second.
judge_loading() {
  local line most=0
  while read -r line; do
    if [[ $line =~ ([0-9]+)\ images/s ]] && ((BASH_REMATCH[1] > most)); then most=${BASH_REMATCH[1]}; fi
  done <"$1"
  if [ -n "$rehearse" ]; then record rate ok 0 0 "$most images/s: a rehearsal judges nothing"
  elif ((most >= 10000)); then record rate ok 0 0 "$most images/s"
  else
    troubles=$((troubles + 1))
    record rate failed 1 0 "$most images/s: expected 10000"
  fi
}

stage_study() {
  without_images study && return
  local settings=(--size gpu) file
  [ ! -d "$kit/segmentation/JPEGImages" ] || settings+=(--segmentation "$kit/segmentation")
  settings+=(--arms "${ARMS:-mocov2-scaled,geometry-image}" --seeds "${SEEDS:-1}" epochs="${STUDY_EPOCHS:-30}" workers=15)
  [ -z "$rehearse" ] || settings=(--size cpu --arms mocov2-scaled,geometry-image --seeds 1 epochs=1 depth=18 baseChannels=4 imageSize=32 batchSize=8 normGroups=1 queueLength=16 featDim=16 hidden=16 workers=1 device=simt)
  # Continued by a later call on the same machine.
  part study 460 "$home/densecl" study --images "$kit/images" "${settings[@]}" --out "$work/study"
  for file in "$work"/study/study.*; do [ ! -f "$file" ] || cp "$file" "$results/results/"; done
  pack
}

for stage in "${picked[@]}"; do
  stage_end=$((SECONDS + 480 < budget ? SECONDS + 480 : budget))
  "stage_$stage"
  if [ $failed90 = 1 ] && [ $failed80 = 0 ] && [ ${#capabilities[@]} = 2 ]; then
    export DENSECL_CAPABILITY=80
    capabilities=(80)
    record kernels changed - 0 "Hopper's kernels failed: what follows takes Ampere's, DENSECL_CAPABILITY=80"
  fi
done
stage=all
printf '\n%s\n' "$([ $troubles = 0 ] && echo 'all parts passed' || echo "$troubles parts FAILED or were skipped: summary.tsv says which and why")" | tee_report
cat "$out/summary.tsv"
[ $troubles = 0 ]
