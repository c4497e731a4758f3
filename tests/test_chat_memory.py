"""ChatMemory: old turns as slots, recent ones as text."""

import json

import pytest
import torch
from tiny_models import SENTENCES, words
from transformers import GenerationConfig

from lab.data.conversations import conversation_rows
from memslots import ChatMemory, MemslotsModel, embedded
from memslots.modeling.layout_memslots import FIRST_SLOT

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def fill(chat: ChatMemory, turns: int) -> list[str]:
    """Adds turns of many lengths, user and assistant by turns, and returns their texts."""
    texts = [words(1 + i * 7 % 12, seed=i) for i in range(turns)]
    for i, text in enumerate(texts):
        chat.add("assistant" if i % 2 else "user", text)
    return texts


@pytest.fixture(scope="module")
def compressor(zoo) -> MemslotsModel:
    return zoo.compressor("llama", "llama", markers="memory").eval()


def test_200_turns_each_compressed_once_in_bounded_positions(compressor, monkeypatch):
    compressed: list[str] = []
    original = compressor.compress
    monkeypatch.setattr(
        compressor,
        "compress",
        lambda text, **kw: (compressed.append(text), original(text, **kw))[1],
    )
    chat = ChatMemory(compressor, keep_last=4, rate=8)
    tokens = [0]
    for i in range(200):
        text = words(1 + i * 7 % 12, seed=i)
        chat.add("assistant" if i % 2 else "user", text)
        encode = compressor.processor.encoder_text.encode
        tokens.append(tokens[-1] + len(encode(f"{'Assistant' if i % 2 else 'User'}: {text}\n")))
        if chat.memory is not None:
            # One position for 8 old tokens, one for each segment's rounding, and two markers ...
            segments = len(chat.memory.segments)
            memory = compressor.memory_positions(chat.memory)[0]
            assert memory <= tokens[chat.compressed_turns] / 8 + segments + 2
            assert segments <= tokens[chat.compressed_turns] / 24 + len(compressed)
        # ... and of text at most the window and less than a block.
        waiting = len(chat.turns) - 4
        old = tokens[i + 1 - min(4, i + 1)] - tokens[chat.compressed_turns]
        assert waiting <= 0 or old < chat.block_tokens == 24
    assert len(chat) == 200
    # Each turn once, in order, and none lost.
    everything = "".join(compressed) + "".join(map(chat._text, chat.turns))
    assert everything == "".join(
        f"{'Assistant' if i % 2 else 'User'}: {words(1 + i * 7 % 12, seed=i)}\n" for i in range(200)
    )
    assert sum(chat.memory.n_tokens) == pytest.approx(tokens[chat.compressed_turns], rel=0.02)
    assert chat.positions < tokens[-1] / 2
    # The first turns are still there, as they were compressed by themselves.
    first = original(compressed[0], rate=8)
    assert torch.equal(chat.memory.slots[: len(first.slots)], first.slots)


def test_a_limit_holds_at_any_length_and_old_blocks_go_first(compressor):
    chat = ChatMemory(compressor, keep_last=2, rate=2, max_positions=40)
    rates = set()
    for i in range(120):
        chat.add("user", words(1 + i % 9, seed=i))
        if chat.memory is not None:
            assert compressor.memory_positions(chat.memory)[0] <= 40
            rates.add(chat.memory.rate)
        assert chat.positions <= 40 + 3 * 24 + 40
    assert rates == {2, 4, 8}  # coarser before anything is forgotten
    assert chat.forgotten_blocks > 0
    newest = chat.memory.segments[-1]
    assert newest.slots == -(-newest.tokens // 8)
    assert isinstance(chat.ask("Why?", **GREEDY), str)


def test_it_reads_memory_then_recent_turns_then_the_question(compressor):
    chat = ChatMemory(compressor, keep_last=2, rate=4, system="Be brief.")
    texts = fill(chat, 12)
    row = chat._row("And then?")
    slots = [segment.slots for segment in chat.memory.segments]
    laid_out = compressor.processor.lay_out([row], slots)
    ids, memory = laid_out["input_ids"][0], laid_out["memory_ids"][0]
    read = compressor.processor.decode(ids[memory == 0])
    kept = texts[chat.compressed_turns :]
    assert len(kept) >= 2
    assert read.startswith("Be brief.\n")
    places = [read.index(f": {text}\n") for text in kept]
    assert places == sorted(places)
    assert read.endswith("Question: And then?\n\nAnswer:")
    assert memory[memory >= FIRST_SLOT].tolist() == [FIRST_SLOT + i for i in range(sum(slots))]
    assert chat.positions + len(compressor.processor.prompt(question="And then?").after) - len(
        compressor.processor.prompt(question="?").after
    ) == len(ids) - len(compressor.processor.prompt(question="?").after)


def test_ask_equals_generate_and_remembers(compressor):
    chat = ChatMemory(compressor, keep_last=0, rate=4, block_tokens=0)
    for text in SENTENCES[:3]:
        chat.add("user", text)
    assert chat.turns == []
    expected = compressor.generate(memory=chat.memory, question="Where?", **GREEDY)
    assert chat.ask("Where?", remember=False, **GREEDY) == expected
    assert len(chat) == 3
    assert chat.ask("Where?", **GREEDY) == expected
    assert len(chat) == 3 + 1 + bool(expected)
    empty = ChatMemory(compressor)
    assert isinstance(empty.ask("Anyone?", **GREEDY), str)


def test_chat_templates(zoo):
    model = zoo.compressor("llama", "llama", prompt_format="chat").eval()
    chat = ChatMemory(model, keep_last=3, rate=4, block_tokens=0)
    fill(chat, 8)
    assert chat.turns[0].role == "assistant"
    row = chat._row("Why?")
    before = model.processor.decode(row.prompt.before, skip_special_tokens=False)
    after = model.processor.decode(row.prompt.after, skip_special_tokens=False)
    assert before.endswith("<|start|>user\n")
    # The memory is the first user's turn, and the window follows.
    assert after.startswith("<|end|>\n<|start|>assistant\n")
    assert after.endswith("<|start|>user\nWhy?<|end|>\n<|start|>assistant\n")
    assert after.count("<|start|>") == 5
    assert isinstance(chat.ask("Why?", **GREEDY), str)


def test_save_and_load(compressor, tmp_path):
    chat = ChatMemory(compressor, keep_last=3, rate=4, literals="numbers", max_positions=60)
    fill(chat, 10)
    chat.add("user", "It costs 27 {role} $ and </s> {content}.")
    fill(chat, 20)
    chat.save(tmp_path / "chat")
    loaded = ChatMemory.load(tmp_path / "chat", compressor)
    assert repr(loaded) == repr(chat)
    for one in (chat, loaded):
        fill(one, 9)
    assert [t.content for t in loaded.turns] == [t.content for t in chat.turns]
    assert torch.equal(loaded.memory.slots, chat.memory.slots)
    assert loaded.ask("Why?", **GREEDY) == chat.ask("Why?", **GREEDY)
    loaded.save(tmp_path / "chat")
    assert len(list((tmp_path / "chat").iterdir())) == 2
    assert len(ChatMemory.load(tmp_path / "chat", compressor)) == len(loaded)


def test_what_cannot_be_loaded(zoo, compressor, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no chat"):
        ChatMemory.load(tmp_path, compressor)
    (tmp_path / "chat.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a chat that memslots saved"):
        ChatMemory.load(tmp_path, compressor)
    (tmp_path / "chat.json").write_text(json.dumps({"format": "memslots.chat", "version": 9}))
    with pytest.raises(ValueError, match="version 9; this memslots reads"):
        ChatMemory.load(tmp_path, compressor)
    ChatMemory(compressor).save(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "chat.json").read_text())
    for wrong in ({"turns": [["robot", "x"]]}, {"turns": 3}, {"memory": 3}, {"keep_last": "x"}):
        (tmp_path / "chat.json").write_text(json.dumps({**whole, **wrong}))
        with pytest.raises(ValueError, match="holds no chat that was saved"):
            ChatMemory.load(tmp_path, compressor)
    (tmp_path / "chat.json").write_text(json.dumps({k: whole[k] for k in ("format", "version")}))
    with pytest.raises(ValueError, match=r"holds no chat that was saved .'keep_last'"):
        ChatMemory.load(tmp_path, compressor)
    chat = ChatMemory(compressor, keep_last=0, block_tokens=0, literals=lambda text: [])
    chat.add("user", SENTENCES[0])
    with pytest.raises(ValueError, match="is not a kind of verbatim tokens; choose from"):
        chat.save(tmp_path / "a")
    chat.literals = None
    chat.save(tmp_path / "a")
    with pytest.raises(ValueError, match="written by compressor"):
        ChatMemory.load(tmp_path / "a", zoo.compressor("llama", "llama", seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_last": -1}, "keep_last must be an integer of at least 0, got -1"),
        ({"rate": 3}, "rate 3 is not one"),
        ({"block_tokens": "many"}, "block_tokens must be an integer"),
        ({"max_positions": 2}, "max_positions must be an integer of at least 3"),
        ({"turn_format": "no place"}, "turn_format must contain"),
        ({"literals": "phones"}, "is not a kind of verbatim tokens"),
        ({"system": " "}, "system is empty"),
    ],
)
def test_bad_settings(compressor, settings, message):
    with pytest.raises(ValueError, match=message):
        ChatMemory(compressor, **settings)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"keep_last": None}, "keep_last must be an integer of at least 0, got None"),
        ({"turn_format": "{content} {content}"}, "turn_format must contain '{content}' once"),
        ({"turn_format": None}, "turn_format must be a string"),
        ({"turn_format": "{content}\ud800"}, "turn_format has a lone surrogate"),
    ],
)
def test_settings_that_fail_only_later_are_refused(compressor, setting, said):
    with pytest.raises((ValueError, TypeError), match=said):
        ChatMemory(compressor, **setting)


def test_a_turn_that_cannot_be_compressed_is_not_added(compressor, monkeypatch):
    chat = ChatMemory(compressor, keep_last=1, block_tokens=0)
    chat.add("user", "Ann owns 27 maps.")
    with monkeypatch.context() as patch:
        patch.setattr(compressor, "compress", lambda *args, **kwargs: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                chat.add("assistant", "She does.")
    assert len(chat) == 1
    chat.add("assistant", "She does.")
    assert len(chat) == 2
    assert chat.compressed_turns == 1


@pytest.mark.parametrize("memory", ["gone.safetensors", "/gone/memory.safetensors"])
def test_a_memory_of_another_name_that_is_not_there(compressor, tmp_path, memory):
    chat = ChatMemory(compressor)
    chat.save(tmp_path)
    state = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    (tmp_path / "chat.json").write_text(json.dumps({**state, "memory": memory}))
    with pytest.raises(FileNotFoundError, match="there is no memory file"):
        ChatMemory.load(tmp_path, compressor)
    (tmp_path / "chat.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not a chat that memslots saved"):
        ChatMemory.load(tmp_path, compressor)
    chat.save(tmp_path)
    assert len(ChatMemory.load(tmp_path, compressor)) == 0


def test_bad_turns_and_questions(compressor):
    chat = ChatMemory(compressor, keep_last=500)
    with pytest.raises(ValueError, match=r"role must be one of .*got 'robot'"):
        chat.add("robot", "Hi.")
    with pytest.raises(ValueError, match="content is empty"):
        chat.add("user", " ")
    with pytest.raises(ValueError, match="does not take assistant_model"):
        chat.ask("Why?", assistant_model=object())
    for several in (
        {"num_return_sequences": 2},
        {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
    ):
        with pytest.raises(ValueError, match=r"one answer.*num_return_sequences"):
            chat.ask("Why?", **several)
    fill(chat, 90)
    with pytest.raises(ValueError, match=r"need \d+ tokens .* decoder has 512.*keep_last"):
        chat.ask("Why?")
    assert len(chat) == 90


def test_facts_of_the_first_turns_by_the_embedded_checkpoint():
    """Seven facts, no turn kept as text. Its decoder reads one person's facts in one segment."""
    model = MemslotsModel.from_pretrained(embedded("tiny"))
    chat = ChatMemory(model, keep_last=0, rate=4, turn_format="{content} ")
    facts = (
        "Carmen Moss is an engineer at Silver Bank.|She lives in Lagos, Nigeria.|"
        "She is 34 years old.|Carmen owns 27 maps.|She speaks English and Yoruba.|"
        "She graduated from University of Kent.|She works on the cloud team."
    )
    chat.block_tokens = 60  # all seven fill it
    for fact in facts.split("|"):
        chat.add("user", fact)
    assert chat.turns == []
    assert len(chat) == chat.compressed_turns == 7
    asked = {
        "What is the person's profession?": "engineer",
        "Which city does the person live in?": "Lagos",
        "How old is the person?": "34",
    }
    for question, answer in asked.items():
        assert chat.ask(question, remember=False, max_new_tokens=12) == answer


@pytest.mark.parametrize("keep_last", [0, 4])
def test_facts_of_the_first_turn_are_answered_after_200_turns(keep_last):
    """The embedded checkpoint, people and small talk that it was not trained on."""
    model = MemslotsModel.from_pretrained(embedded("tiny"))
    right = asked = 0
    for row in conversation_rows("test", 4, turns=200, seed=5, questions=5):
        chat = ChatMemory(model, keep_last=keep_last, rate=16)
        for i, turn in enumerate(row["turns"]):
            chat.add("assistant" if i % 2 else "user", turn)
        assert len(chat) == 200
        assert chat.positions < 520  # the turns as text: about 3,000
        for question, answer in zip(row["question"], row["answer"], strict=True):
            right += chat.ask(question, remember=False, max_new_tokens=14).strip() == answer
            asked += 1
    # 73% and 57% of 30; the same decoder with all turns as text: none.
    assert right >= 0.4 * asked


STRICT = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
STRICT += "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"


def test_turns_of_one_role_become_one_message(zoo):
    model = zoo.compressor("llama", "llama", prompt_format="chat").eval()
    tokenizer = model.processor.tokenizer
    template = tokenizer.chat_template
    tokenizer.chat_template = STRICT + template
    try:
        chat = ChatMemory(model, rate=4)
        chat.add("user", "Ann is here.")  # as after an empty answer
        chat.add("user", "She owns 27 maps.")
        chat.add("assistant", "Yes.")
        chat.add("assistant", "And more.")
        chat.add("user", "Where?")
        row = chat._row("Why?")
        ids = [*row.prompt.before, *row.prompt.after]
        read = model.processor.decode(ids, skip_special_tokens=False)
        for text in ("Ann is here.\n\nShe owns 27 maps.", "Yes.\n\nAnd more.", "Where?\n\nWhy?"):
            assert text in read
        assert isinstance(chat.ask("Why?", **GREEDY), str)
    finally:
        tokenizer.chat_template = template


def test_a_saver_deletes_only_what_its_predecessor_named(compressor, tmp_path, monkeypatch):
    chats = [ChatMemory(compressor, keep_last=0, rate=4, block_tokens=0) for _ in range(2)]
    for chat, text in zip(chats, SENTENCES, strict=False):
        chat.add("user", text)
    original = type(chats[0].memory).save

    def save(memory, path):
        original(memory, path)
        if memory is chats[0].memory:
            chats[1].save(tmp_path)  # another saver is through meanwhile

    monkeypatch.setattr(type(chats[0].memory), "save", save)
    chats[0].save(tmp_path)
    assert torch.equal(ChatMemory.load(tmp_path, compressor).memory.slots, chats[0].memory.slots)


def test_a_loader_reads_again_where_a_file_is_gone(compressor, tmp_path, monkeypatch):
    chat = ChatMemory(compressor, keep_last=0, rate=4, block_tokens=0)
    chat.add("user", SENTENCES[0])
    chat.save(tmp_path)
    original, loads = compressor.load_memory, []

    def load(path):
        loads.append(path)
        if len(loads) == 1:
            chat.save(tmp_path)  # its file is gone before it is read
        return original(path)

    monkeypatch.setattr(compressor, "load_memory", load)
    assert torch.equal(ChatMemory.load(tmp_path, compressor).memory.slots, chat.memory.slots)
    assert len(loads) == 2
    loads[0:] = [None]
    next(tmp_path.glob("memory-*")).unlink()
    with pytest.raises(FileNotFoundError, match="memory"):
        ChatMemory.load(tmp_path, compressor)


def test_a_chat_on_a_full_disk(compressor, tmp_path):
    resource = pytest.importorskip("resource")
    chat = ChatMemory(compressor, keep_last=0, rate=4, block_tokens=0)
    chat.add("user", SENTENCES[0])
    chat.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        for changed in (chat, ChatMemory(compressor)):
            with pytest.raises(OSError):  # noqa: PT011
                changed.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_answer_ends_where_the_checkpoint_says_in_a_chat_too():
    model = MemslotsModel.from_pretrained(embedded("tiny"), answer_end=" and")
    text = "Carmen Moss is an engineer at Silver Bank. She speaks English and Yoruba."
    question = "Which languages does the person speak?"
    chat = ChatMemory(model, keep_last=0, block_tokens=0, turn_format="{content}\n")
    chat.add("user", text)
    answer = model.generate(memory=chat.memory, question=question)
    assert answer.endswith(" and")
    assert chat.ask(question, remember=False) == answer
    longer = chat.ask(question, remember=False, stop_strings=[" no such"])
    assert longer.startswith(answer)
    assert longer != answer


def test_turns_that_the_encoder_drops_do_not_lock_the_chat(zoo):
    model = zoo.compressor("bert", "llama").eval()
    chat = ChatMemory(model, keep_last=1, block_tokens=0, turn_format="{content}\n")
    for number in range(2):
        with pytest.raises(ValueError, match=r"drops all of the user's '\\u200b'"):
            chat.add("user", "\u200b")
        with pytest.raises(ValueError, match=r"drops all of the user's '\\u200b'"):
            chat.ask("\u200b", max_new_tokens=2)
        assert len(chat) == number
        chat.add("user", "Carmen lives in Lagos.")
    assert chat.compressed_turns == 1


def test_settings_in_a_generation_config_count_in_a_chat_too(compressor):
    chat = ChatMemory(compressor)
    for most in ({"max_new_tokens": 600}, {"return_dict_in_generate": True}):
        with pytest.raises(ValueError, match=r"decoder has 512|ask returns text"):
            chat.ask("Why?", generation_config=GenerationConfig(**most))
