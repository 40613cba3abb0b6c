#!/usr/bin/env bash
# How the files here were written: by commit 1f16dd8, the last one before modules were moved and renamed.
#   git worktree add OLD 1f16dd8 && bash make.sh OLD OUT
# They are never written anew: what they prove is that later code reads the files of earlier code.
# Everything runs inside OUT with relative paths, so no path of a machine is in any file.
set -euo pipefail
old=$(realpath "$1")
mkdir -p "$2" && cd "$2"
export PYTHONPATH=$old OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
moe() { python -m altup_moe.cli "$@"; }
ranks() { python -m torch.distributed.run --nproc-per-node 2 --no-python python -m altup_moe.cli "$@"; }

# Data: made-up sentences, a tokenizer with sentinels (T5 needs them), tokens.
python - <<'PY'
import json, pathlib, random
draw = random.Random(5)
nouns, verbs = ["cat", "dog", "bird", "fox", "wind", "house"], ["sees", "finds", "likes", "leaves"]
text = lambda: " ".join(f"the {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}." for _ in range(9))
pathlib.Path("text.jsonl").write_text("".join(json.dumps({"text": f"{n} {text()}"}) + "\n" for n in range(40)))
pathlib.Path("squad").mkdir()
rows = [
    {"question": f"What does the {n} see?", "context": f"the {n} sees the fox.", "answers": {"text": ["the fox", "fox"]}}
    for n in nouns
]
for split in ("train", "validation"):
    pathlib.Path(f"squad/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
PY
python "$old/tools/prepare_data.py" text.jsonl data/tokens --vocab-size 288 --sentinels 16

# Runs. decoder: two ranks, tensors and experts cut in two, dropout (so that random streams matter), cut after 18 of 24
# steps; decoder_whole is the same run left alone.
ranks train decoder_config.yaml --log.run_dir decoder_whole
ranks train decoder_config.yaml --train.stop_after 18
moe train t5_config.yaml
moe train dynamic_config.yaml

# Exports.
for run in decoder t5; do python "$old/tools/convert.py" export "$run" "${run}_hf"; done

# A study to its end, one row of which cannot be trained, and the same study stopped once its first row is trained.
code=0; python "$old/tools/study.py" run study.yaml --dir study || code=$?; [ $code = 1 ]
python "$old/tools/study.py" run study.yaml --dir study_cut --jobs 1 & study=$!
until ls study_cut/rows/*/trained.json 2>/dev/null; do sleep 0.05; done
kill -TERM $study; code=0; wait $study || code=$?; [ $code = 75 ]

# The paper's path, and a measured machine.
python "$old/tools/paper.py" recipe.yaml --jobs 1
python "$old/tools/plan.py" measure cluster.yaml

# What later code must find again.
moe evaluate decoder --json > evaluate_decoder.json
moe evaluate t5 --json > evaluate_t5.json
moe evaluate dynamic --json > evaluate_dynamic.json
for run in decoder t5 dynamic; do
    moe generate "$run" --prompt "the cat sees" --max_new_tokens 12 --temperature 1 --seed 3 > "generate_$run.txt"
done
python "$old/tools/study.py" report study --json > report.json
python "$old/tools/inspect_checkpoint.py" decoder --json > inspect_decoder.json
python - <<'PY'
import json, pathlib
import altup_moe.model.reference, altup_moe.model.reference_t5, torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
ids = torch.arange(20, 28)[None]
read = lambda name: json.loads(pathlib.Path(name).read_text())
with torch.no_grad():
    decoder = AutoModelForCausalLM.from_pretrained("decoder_hf")(ids).logits[0, -1, :8].tolist()
    t5 = AutoModelForSeq2SeqLM.from_pretrained("t5_hf")(ids, decoder_input_ids=ids).logits[0, -1, :8].tolist()
lines = pathlib.Path("decoder_whole/metrics.jsonl").read_text().splitlines()
figures = ("loss", "lm_loss", "aux_loss", "z_loss", "grad_norm", "learning_rate", "valid_loss")
costs = ("loss", "bits_per_byte", "train_step", "prefill", "decode", "parameters")
results, report, inspected = read("paper/results.json"), read("report.json"), read("inspect_decoder.json")
del inspected["checkpoint"], inspected["libraries"]
known = {
    "whole": [{key: json.loads(line).get(key) for key in figures} for line in lines],
    "evaluate": {name: read(f"evaluate_{name}.json") for name in ("decoder", "t5", "dynamic")},
    "generate": {n: pathlib.Path(f"generate_{n}.txt").read_text() for n in ("decoder", "t5", "dynamic")},
    "logits": {"decoder_hf": decoder, "t5_hf": t5},
    "report": {model["name"]: {key: model[key]["mean"] for key in costs} for model in report["models"]},
    "failed": report["failed"],
    "inspect": inspected,
    "paper": {key: results[key] for key in ("questions", "f1", "em", "valid_loss")},
}
text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in known.items())
pathlib.Path("recorded.json").write_text(f"{{\n{text}\n}}\n")
PY

# Only what is read again is kept: no logs, no pictures, no tensors and manifests of which a tool only asks whether they
# are there. Every run has a copy of the data's tokenizer, which the test puts back. The kernel's name is left out.
for run in decoder t5 dynamic; do diff -r data/tokens.tokenizer "$run/tokenizer"; done
rm -rf decoder/tokenizer t5/tokenizer dynamic/tokenizer decoder_hf/tokenizer*.json t5_hf/tokenizer*.json
rm -rf decoder_whole text.jsonl evaluate_*.json generate_*.txt report.json inspect_decoder.json study/report
rm -rf study/data study_cut/data study*/lock study*/*.txt paper/data
find study study_cut \( -name checkpoints -o -name tokenizer -o -name "log.txt" \) -prune -exec rm -r {} +
find paper \( -name "*.safetensors" -o -name "manifest.sha256" -o -name "*.log" \) -delete
find paper -name manifest.json -exec truncate -s 0 {} +
find paper -name tokenizer -prune -exec rm -r {} +
sed -i -E 's/"system": "[^"]*"/"system": "Linux-x86_64"/' study/rows.jsonl
