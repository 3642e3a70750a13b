#!/usr/bin/env bash
# All pictures of README.md and the documentation, from what the demo trained: the demo's own picture, a report on its
# stage 1 against both stages on 12 new cases of the demo's kind, and the features of one of these cases.
#   dinomed3d demo && docs/make_pictures.sh dinomed3d_demo
set -euo pipefail
demo=$(realpath "${1:?the folder that dinomed3d demo wrote}")
docs=$(realpath "$(dirname "$0")")

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
dataset=nnUNet_raw/Dataset900_DINOMed3DDemo
export nnUNet_raw=$scratch/nnUNet_raw nnUNet_preprocessed=$demo/nnUNet_preprocessed nnUNet_results=$demo/nnUNet_results
nnUNet_extTrainer=$(dinomed3d trainer-path)
export nnUNet_extTrainer

python -c "
from pathlib import Path
from nnunetv2_dinomed3d.demo.phantom import make_dataset
make_dataset(Path('$dataset'), training_cases=0, test_cases=12, seed=1)"
predict=(nnUNetv2_predict -d 900 -c 3d_fullres -f 0 -tr nnUNetTrainerDINOMed3D_nano -device cpu -i "$dataset/imagesTs")
"${predict[@]}" -o stage1 -chk checkpoint_best_stage1.pth
"${predict[@]}" -o stage2
dinomed3d compare 900 --pred "stage 1"=stage1 "both stages"=stage2 --gt "$dataset/labelsTs" -o report
dinomed3d look "$dataset/imagesTs/test_00_0000.nii.gz" -d 900 -tr nnUNetTrainerDINOMed3D_nano -o look --slices 4 6

cp "$demo/demo.png" "$docs/demo.png"
cp report/figures/dice.png "$docs/report.png"
cp report/figures/worst_1.png "$docs/report_case.png"
cp look/*.png "$docs/look.png"
