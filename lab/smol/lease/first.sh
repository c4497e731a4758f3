# With `.gpu/first` carried: copies what training reads, and compiles the layers meanwhile, which
# the training then finds in torch's cache.
mkdir -p ~/smol/code && cp -r .gpu/first ~/smol/ && cp -r src lab benchmarks ~/smol/code/
python3 -m pip install -q --no-index --no-deps --target ~/smol/site ~/smol/first/*.whl
cat > ~/smol/env.sh <<'X'
export PYTHONPATH=~/smol/site:~/smol/code/src:~/smol/code:~/smol/code/benchmarks PYTHONUNBUFFERED=1
export TOKENIZERS_PARALLELISM=false PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True HF_HUB_OFFLINE=1
cd ~/smol/code
smol() {
    python3 -m lab.smol.train "$1" --tokens ~/smol/first --start ~/smol/first --device cuda --workers 10 --threads 4 "${@:2}"
}
X
cat > ~/smol/warm.sh <<'X'
. ~/smol/env.sh
python3 - <<'P'
import json, shutil
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
source, random = Path("src/memslots/assets/smol"), Path.home() / "smol/random"
torch.set_default_dtype(torch.bfloat16)
settings = json.loads((source / "config.json").read_text())["decoder_config"]
LlamaForCausalLM(LlamaConfig(**settings)).to("cuda").save_pretrained(random)
for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    shutil.copyfile(source / name, random / name)
P
smol /tmp/warm --decoder ~/smol/random --steps 28 --log-every 7
echo warm
X
setsid nohup bash ~/smol/warm.sh > ~/smol/warm.log 2>&1 < /dev/null &
nvidia-smi
