"""An agent's loop around a memory: it asks for a segment's text, then answers with it in view.

    python examples/expand_tool.py

The tool call is written out here where an LLM with tools would have made it.
"""

import json

from memslots import MemslotsModel, embedded, verified
from memslots.tools import expand, run_expand, segment_list

text = (
    "Here is Joseph Evans, a professor from Cedar Motors. Joseph has a house in Mumbai in India. "
    "He turned 47 this year. In Joseph's house there are 670 cups. Joseph speaks Latin and Thai."
)
model = MemslotsModel.from_pretrained(embedded("tiny"))
memory = model.compress(text, rate=16, keep_text=True)
question = "How many cups does the person own?"
print(verified.report(memory))

system = "The context is compressed into these segments:\n" + segment_list(memory)
messages = [
    {"role": "system", "content": system},
    {"role": "user", "content": question},
]
print(json.dumps({"messages": messages, "tools": [expand]}, indent=1))

call = {"name": "expand", "arguments": '{"segments": [0]}'}  # what the agent's LLM answers with
result = run_expand(model, memory, call["arguments"])
messages.append({"role": "tool", "name": "expand", "content": json.dumps(result)})
print(result["segments"][0]["text"])

segments = [one["segment"] for one in result["segments"]]
opened = verified.expanded(model, memory, segments)
answer = model.generate(memory=opened, question=question, max_new_tokens=8)
print("answer:", answer)
