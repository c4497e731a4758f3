"""Serve memories over HTTP, and be its client: compress once, ask from elsewhere.

    pip install -e ".[serve]"  # in a checkout
    python examples/serve.py                                 # tiny

The server half is `memslots serve --model CHECKPOINT`, here inside one's own program; with
`VllmEngine` in place of `TransformersEngine` a vLLM server generates. The client half is any
OpenAI client: `memory_ids` and `documents` are fields more of the same request.
"""

import argparse
import secrets
import threading
import time
from importlib.resources import files

import httpx
import uvicorn

from memslots import MemslotsModel, embedded
from memslots.serving.engines import TransformersEngine
from memslots.serving.gateway import Gateway
from memslots.serving.gateway_settings import GatewaySettings
from memslots.serving.shelf import ProcessShelf

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", nargs="?", default=embedded("tiny"))
options = parser.parse_args()

# 1. The server, on a free port of this machine. The key is made for this run.
model = MemslotsModel.from_pretrained(options.checkpoint)
key = secrets.token_urlsafe()
gateway = Gateway(
    model, TransformersEngine(model), ProcessShelf(), GatewaySettings(api_keys=(key,))
)
# Without log_config=None uvicorn would close the handlers of the program around it.
server = uvicorn.Server(uvicorn.Config(gateway.app(), port=0, log_config=None))
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    time.sleep(0.05)
url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

# 2. The client: a text goes there once, questions go with its id.
client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
text = (files("memslots") / "assets" / "demo.txt").read_text("utf-8").split("\n\n")[0]
memory = client.post("/v1/memories", json={"text": text}).raise_for_status().json()
print(f"{memory['id']}: {memory}")
question = "In which city does the person live?"
body = {"messages": [{"role": "user", "content": question}], "memory_ids": [memory["id"]]}
answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
print(f"{question} {answer['choices'][0]['message']['content']}")

# 3. Stop.
server.should_exit = True
thread.join()
