#!/usr/bin/env bash
# Builds the wheel and uses it as people do, each time in a fresh environment:
#   1. pip install notan           predicts with the default model, without PyTorch;
#   2. pip install notan[...]      trains, evaluates, exports and predicts, from Python too.
# Nothing of the checkout is on the path: what the wheel lacks is missed here.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="$(cd "$root" && command -v "${PYTHON:-python3}")"
[[ $python = /* ]] || python="$root/$python"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'check_wheel: %s\n' "$*" >&2; exit 1; }

say "the wheel, from what git would hand out"
mkdir "$folder/source"
git -C "$root" ls-files --cached --others --exclude-standard -z \
  | (cd "$root" && xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh) \
  | tar -C "$root" --null --files-from - -cf - | tar -C "$folder/source" -xf -
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$folder/source"
wheel="$(ls "$folder"/notan-*.whl)"
"$python" - "$wheel" <<'PY'
import sys, zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
for wanted in (
    "notan/py.typed", "notan/modelfile/default/pets.onnx", "notan/modelfile/default/README.md",
    "notan/report/templates/report.html", "notan/serve/templates/docs.html",
    "notan/studio/page/index.html", "notan/studio/page/main.js", "notan/studio/page/style.css",
    "licenses/LICENSE", "licenses/LICENSES/CC-BY-SA-4.0.txt",
):
    assert any(name.endswith(wanted) for name in names), f"the wheel lacks {wanted}"
PY

cd "$folder"  # away from the checkout

say "pip install notan: the default model, without PyTorch"
"$python" -m venv plain
plain/bin/pip install --quiet --constraint "$root/constraints.txt" "$wheel"
plain/bin/python -c 'import torch' 2>/dev/null && fail "torch came with the bare wheel"
cp "$root/docs/images/chelsea.png" cat.png
plain/bin/notan predict cat.png
test -s predictions/masks/cat.png || fail "no mask was written"
plain/bin/python - <<'PY'
import notan

prediction = notan.predict("cat.png")
assert 0.05 < prediction.mask.mean() < 0.95, prediction.mask.mean()
assert len(notan.predict(["cat.png", "cat.png"])) == 2
PY
plain/bin/notan train --data-path nowhere 2>&1 | tee refusal || true
grep -q "training needs PyTorch: pip install 'notan\[train\]'" refusal \
  || fail "the missing extra was not named"

say "pip install notan[train,export]: from a folder to masks"
"$python" -m venv whole
whole/bin/pip install --quiet --constraint "$root/constraints.txt" "$wheel[train,export]"
data="$root/../shared/data/nuclei"  # real images, where they are
if [ ! -d "$data" ]; then
  data="$folder/drawn"
  whole/bin/python - "$data" <<'PY'
import sys
from pathlib import Path

from notan.data.synthetic import DrawnSource, write_folder

for first, (part, count) in enumerate((("train", 24), ("test", 6))):
    write_folder(DrawnSource(count, size=(64, 64), first=100 * first), Path(sys.argv[1]) / part)
PY
fi
whole/bin/notan train --data-path "$data" --out run --epochs 1 --batch-size 4 --image-size 64 \
  --device cpu model.width=4 data.limit=16
whole/bin/notan evaluate --model run/best.safetensors --data-path "$data" --split test --device cpu
whole/bin/notan export --model run/best.safetensors --out model.onnx
whole/bin/notan predict "$data/test/images" --model model.onnx --out masks
ls masks/masks/*.png >/dev/null
whole/bin/python - "$data" <<'PY'
import sys

import notan

data = sys.argv[1]
result = notan.train(
    data, epochs=1, image_size=32, out="again", device="cpu",
    overrides=["model.width=2", "data.limit=8"],
)
score = notan.evaluate(result.checkpoint, data, split="test")
assert 0 <= score.mean_dice <= 1
assert notan.export(result.checkpoint, "again.onnx").is_file()
PY
say "the wheel is fine"
