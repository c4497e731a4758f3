"""Ask the gateway with the `openai` client: memories and documents go in `extra_body`.

    pip install -e ".[serve]"
    MEMSLOTS_API_KEY=secret memslots serve                   # in another terminal
    MEMSLOTS_API_KEY=secret python examples/openai_client.py

Without documents and memory ids a request is a plain chat with the decoder, so chat interfaces such
as Open WebUI take this URL and key as they take any other server's.
"""

import argparse
import os

import openai

parser = argparse.ArgumentParser()
parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
options = parser.parse_args()
client = openai.OpenAI(base_url=options.url, api_key=os.environ.get("MEMSLOTS_API_KEY", "none"))
model = client.models.list().data[0].id

# 1. Compress once. /v1/memories is the gateway's own route.
text = "Carmen Moss is an engineer at Silver Bank. She lives in Lagos, Nigeria."
memory = client.post("/memories", body={"text": text}, cast_to=dict)
print(f"{memory['id']}: {memory['slots']} slots")

# 2. Ask about it by its id, as often as you like.
messages = [{"role": "user", "content": "In which city does the person live?"}]
about = {"memory_ids": [memory["id"]]}
answer = client.chat.completions.create(model=model, messages=messages, extra_body=about)
print(answer.choices[0].message.content, answer.usage.memslots)

# 3. The same in parts.
stream = client.chat.completions.create(
    model=model, messages=messages, extra_body=about, stream=True
)
parts = [chunk.choices[0].delta.content or "" for chunk in stream]
print("".join(parts))

# 4. A text that is compressed on the spot.
at_once = client.chat.completions.create(
    model=model, messages=messages, extra_body={"documents": [text], "rate": 4}
)
print(at_once.choices[0].message.content)
