"""Answers word by word, and answers while an event loop goes on with other work.

    pip install -e .  # in a checkout
    python examples/stream_and_async.py

`generate` takes the streamers of transformers. It needs a thread of its own, since it returns when
the answer is whole.
"""

import asyncio
from threading import Thread

from transformers import AsyncTextIteratorStreamer, TextIteratorStreamer

from memslots import MemslotsModel, embedded

text = "Carmen Moss is an engineer at Silver Bank. She lives in Lagos, Nigeria."
question = "In which city does the person live?"
model = MemslotsModel.from_pretrained(embedded("tiny"))
memory = model.compress(text)
asked = {"memory": memory, "question": question, "max_new_tokens": 16}
# With a timeout, since a thread that fails never ends its stream.
shown = {"skip_prompt": True, "skip_special_tokens": True, "timeout": 60}

# 1. Word by word, in a program without an event loop.
streamer = TextIteratorStreamer(model.processor.tokenizer, **shown)
thread = Thread(target=model.generate, kwargs={**asked, "streamer": streamer})
thread.start()
words = []
for word in streamer:
    words.append(word)
    print(word, end="", flush=True)
print()
thread.join()


async def whole_answers(questions: list[str]) -> list[str]:
    """2. Whole answers beside other work; a list of questions is one batch."""
    return await asyncio.to_thread(
        model.generate, memory=memory, question=questions, max_new_tokens=16
    )


async def word_by_word() -> str:
    """3. Word by word in an event loop."""
    streamer = AsyncTextIteratorStreamer(model.processor.tokenizer, **shown)
    answering = asyncio.create_task(asyncio.to_thread(model.generate, **asked, streamer=streamer))
    answer = ""
    async for word in streamer:
        answer += word
    await answering
    return answer.strip()


async def main() -> tuple[list[str], str]:
    """One after the other: a decoder answers one call at a time."""
    return await whole_answers(
        [question, "In which city does the person live?"]
    ), await word_by_word()


answers, streamed = asyncio.run(main())
print(answers, streamed)
