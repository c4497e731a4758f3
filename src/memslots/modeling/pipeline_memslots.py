"""The question-answering pipeline that travels with a checkpoint.

`config.json` registers it, so that transformers finds it by name::

    pipeline("memory-question-answering", model=repo, trust_remote_code=True)
"""

import os
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers import Pipeline

from .decoders_memslots import check_generate_kwargs
from .layout_memslots import pair
from .memory_memslots import Memory
from .texts_memslots import as_list

Item = dict[str, Any]


class MemoryQuestionAnsweringPipeline(Pipeline):
    """Answers questions from contexts, each compressed once, or from memories of them.

    `batch_size`, `rate` and the arguments of `generate` (`max_new_tokens`, `num_beams`, ...) may be
    given here, for every call, or to a call.
    """

    # The model brings its own processor.
    _load_processor = False
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __call__(
        self,
        inputs=None,
        *,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        memory=None,
        batch_size: int | None = None,
        **kwargs,
    ):
        """Answer one question or many.

        Args:
            inputs: `{"question": ..., "context": ...}` or `{"question": ..., "memory": ...}`, a
                list of such, or a generator or dataset of such, which is read as it is answered.
            question: a question, or n, instead of `inputs`.
            context: a text or n. n pair with n questions; one of either goes with all of the other.
            memory: instead of `context`: a memory, or a saved one's path; n documents are n texts.
            batch_size: questions that the decoder answers at once.
            kwargs: `rate` (of a memory, a coarser one than its own) and arguments of `generate`.

        Returns:
            `{"answer", "n_tokens", "n_slots", "rate"}`: the answer, encoder tokens of the context,
            slots for them, encoder tokens per slot. A list for a list, an iterator for a stream.

        Raises:
            ValueError: what does not go together, and what `compress` and `generate` raise.
            TypeError: inputs of another type.
        """
        settings = {**self._forward_params, **self._sanitize_parameters(**kwargs)[1]}
        size = self._batch_size if batch_size is None else batch_size
        settings |= {} if size is None else {"batch_size": size}
        if inputs is None:
            items, single = _pair_up(question, context, memory)
        elif not question is context is memory is None:
            raise ValueError("give either inputs, or question= with context= or memory=, not both.")
        elif isinstance(inputs, (GeneratorType, Dataset)):
            rows: Any = inputs
            if not hasattr(rows, "__iter__"):  # a Dataset by index
                rows = map(rows.__getitem__, range(len(rows)))
            return (answer for item in rows for answer in self([item], **settings))
        else:
            items, single = _spread(inputs)
        answers = self.postprocess(self.forward(self.preprocess(items), **settings))
        return answers[0] if single else answers

    def _sanitize_parameters(self, **kwargs):
        nested = kwargs.pop("generate_kwargs", None) or {}
        if check_generate_kwargs({**nested, **kwargs}).get("return_dict_in_generate"):
            raise ValueError(
                "this pipeline returns answers; for return_dict_in_generate call "
                "pipe.model.generate(memory=..., question=...)."
            )
        return {}, {**nested, **kwargs}, {}

    def preprocess(self, input_: list[Item], **parameters) -> dict[str, Any]:
        """The items as they are: the model reads texts."""
        return {"items": input_}

    def _forward(self, input_tensors: dict[str, Any], **parameters) -> dict[str, Any]:
        model, rate, items = self.model, parameters.pop("rate", None), input_tensors["items"]
        # Texts are answered together, and memories of one rate: others cannot be joined.
        groups: dict[int | None, list[int]] = {}
        for i, item in enumerate(items):
            groups.setdefault(getattr(item["source"], "rate", None), []).append(i)
        results: list[Any] = [None] * len(items)
        asked = []  # texts first: what does not fit is refused before anything is encoded
        for memory_rate, chosen in sorted(groups.items(), key=lambda group: group[0] is not None):
            sources = [items[i]["source"] for i in chosen]
            if all(source == sources[0] for source in sources):  # memories by identity
                sources = sources[:1]
            source: dict[str, Any] = {"context": sources, "rate": rate}
            if memory_rate is None:
                spans = model.segment(sources)
                memory = model.outline(sources, spans, model.processor.check_rate(rate))
            else:
                memory = Memory.cat(sources)
                memory = memory if rate is None else memory.at_rate(rate)
                model.check_memory(memory)
                source = {"memory": memory}
            asked.append((chosen, source, memory))
        for chosen, source, memory in asked:
            questions = [items[i]["question"] for i in chosen]
            answers = model.generate(**source, question=questions, **parameters)
            each = len(answers) // len(chosen)  # more than 1 with num_return_sequences
            for n, i in enumerate(chosen):
                several, document = answers[n * each : (n + 1) * each], n % len(memory)
                results[i] = {
                    "answer": several[0] if each == 1 else several,
                    "n_tokens": memory.n_tokens[document],
                    "n_slots": memory.n_slots[document],
                    "rate": memory.rate,
                }
        return {"results": results}

    def postprocess(self, model_outputs: dict[str, Any], **parameters) -> Any:
        """One result an item."""
        return model_outputs["results"]


def _spread(inputs) -> tuple[list[Item], bool]:
    """Items of a dict or a list of dicts, and whether one answer is to come back."""
    if isinstance(inputs, dict):
        unknown = sorted(set(inputs) - {"question", "context", "memory"})
        if unknown:
            raise ValueError(f"an input has keys {unknown}; allowed are question, context, memory.")
        return _pair_up(inputs.get("question"), inputs.get("context"), inputs.get("memory"))
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(
            "inputs must be a dict {'question': ..., 'context': ...}, a list of such or a "
            f"generator of such, got {type(inputs).__name__}."
        )
    if not inputs:
        raise ValueError("inputs is an empty list; give at least one question.")
    return [item for each in inputs for item in _spread(each)[0]], False


def _pair_up(question, context, memory) -> tuple[list[Item], bool]:
    """An item for each question, with what it is about: a text, or a memory of one document."""
    if question is None:
        raise ValueError("question is missing; give a question, or a list of them.")
    if (context is None) == (memory is None):
        raise ValueError(
            "give either context or memory with the question, "
            f"got {'both' if context is not None else 'neither'}."
        )
    questions = as_list(question, "question")
    if context is not None:
        sources = as_list(context, "context")
        single = isinstance(context, str)
    else:
        if isinstance(memory, (str, os.PathLike)):
            memory = Memory.load(memory)
        if not hasattr(memory, "documents"):
            raise TypeError(
                "memory must be a Memory from compress or the path of a saved one, got "
                f"{type(memory).__name__}."
            )
        sources = [memory[i] for i in range(len(memory))]
        single = len(memory) == 1
    pairs = pair(len(sources), len(questions))
    items = [{"question": questions[j], "source": sources[i]} for i, j in pairs]
    return items, single and isinstance(question, str)
