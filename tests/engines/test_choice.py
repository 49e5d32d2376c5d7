"""What must hold before a model is loaded: its device, its memory, its length, what it is; and the engine's name."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flows.command.configuration import checked
from schemas.config import AutoEngine, Model, TransformersEngine, VLLMServerEngine
from tasks.engines import choice as choice_module
from tasks.engines import memory
from tasks.engines.choice import EngineChoice, choose
from tasks.engines.device import resolve_device
from tasks.engines.identity import ModelLibrary
from tasks.engines.memory import GIB, check_size, fits, is_out_of_memory, weight_bytes, weights
from tasks.engines.positions import Limit
from tasks.engines.protocol import Continuation, Draw, EngineError, Trunk, ended
from tasks.engines.transformers.backend import TransformersBackend
from tasks.engines.transformers.sampler import TransformersSampler
from tasks.inputs.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cpu:cpu", "tpu7", "cuda:-1", "سي"])
def test_what_is_no_device_is_named(name: str) -> None:
    with pytest.raises(EngineError) as error:
        resolve_device(name)
    assert repr(name) in str(error.value) and "auto" in str(error.value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1") and resolve_device("cuda").index is None
    with pytest.raises(EngineError, match="'cuda:2', but this machine has 2 GPUs; use cpu or auto"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EngineError, match="this machine has 0 GPUs"):
        resolve_device("cuda")


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_there_is_one(there: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == torch.device(device)


def saved(folder: Path, **shapes: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, shape in shapes.items():
        save_file({"w": torch.zeros(shape, dtype=torch.float16)}, str(folder / f"{name}.safetensors"))
    return folder


def test_weights_are_counted_in_the_dtype_that_they_are_run_in(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", a=(3, 5), b=(7,), scalar=(), none=(0, 9))
    assert weight_bytes(folder, torch.float32) == 4 * (15 + 7 + 1)
    assert weights(Model(path=str(folder), dtype="bfloat16")) == 2 * (15 + 7 + 1)


def test_weights_that_cannot_be_counted_are_not_known(tmp_path: Path) -> None:
    assert weight_bytes(tmp_path, torch.float32) is None
    assert weights(Model(path="nobody/of-this-name")) is None  # a hub name that is not cached
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    assert weights(Model(path=str(tmp_path))) is None
    check_size(Model(path=str(tmp_path)), CPU)  # loading tells what is wrong


def test_a_model_that_no_memory_holds_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "m", a=(1024, 1024))
    monkeypatch.setattr(memory, "total_memory", lambda _: 3 * 2**20)
    with pytest.raises(EngineError, match=r"has 0\.00 GiB of weights in float32, but cpu has 0\.00 GiB in total"):
        check_size(Model(path=str(folder)), CPU)
    check_size(Model(path=str(folder), dtype="float16"), CPU)


@pytest.mark.parametrize(("free", "expected"), [(3.9, False), (4.0, False), (4.2, True)])
def test_a_model_fits_where_a_tenth_is_left_to_work_in(
    free: float, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "m", a=(1024, 256))  # 1 MiB
    monkeypatch.setattr(memory, "total_memory", lambda _: 30 * 2**20)
    monkeypatch.setattr(memory, "free_memory", lambda _: int(free * 2**20))
    assert fits(Model(path=str(folder)), CPU) == expected


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_CGROUP", (most, used))
    whole = memory.total_memory(CPU)
    assert whole == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most.write_text("max\n")
    used.write_text("5\n")
    assert memory.total_memory(CPU) == whole and memory.free_memory(CPU) > 5
    most.write_text("1000\n")
    used.write_text("400\n")
    assert memory.total_memory(CPU) == 1000 and memory.free_memory(CPU) == 600
    used.write_text("1400\n")
    assert memory.free_memory(CPU) == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError("can't allocate memory"), False),
    ],
)
def test_errors_of_allocations_are_told_apart(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    assert GIB == 1024**3


def test_a_model_is_its_content_and_not_its_place(models: Path, tmp_path: Path) -> None:
    here, there = Model(path=str(models / "student")), Model(path=str(tmp_path / "again"))
    shutil.copytree(models / "student", tmp_path / "again")
    library = ModelLibrary()
    assert library.fingerprint(here) == library.fingerprint(there)
    assert len({library.fingerprint(Model(path=str(models / n))) for n in ("student", "teacher", "other")}) == 3
    assert library.fingerprint(here) != library.fingerprint(here.model_copy(update={"dtype": "bfloat16"}))
    known = library.fingerprint(there)
    (tmp_path / "again" / "generation_config.json").write_text("{}")
    assert library.fingerprint(there) == known != ModelLibrary().fingerprint(there)  # each is looked at once
    assert library.tokenizer(here) is library.tokenizer(here)


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_what_a_model_has_has_no_fingerprint(lacking: str, models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "student", tmp_path / "m"))
    (folder / lacking).unlink()
    with pytest.raises(ValueError, match=r"/m'? (has no config\.json|has no tokenizer)"):
        ModelLibrary().fingerprint(Model(path=str(folder)))


def test_an_engine_that_cannot_begin_names_the_field_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(settings: object) -> None:
        raise EngineError("nobody answers")

    monkeypatch.setattr(choice_module, "implementation", lambda place: refusing)
    with pytest.raises(InputError, match=r"^engine\.kind: nobody answers$"):
        EngineChoice(TransformersEngine())
    with pytest.raises(InputError, match=r"^engine\.urls: nobody answers$"):
        EngineChoice(VLLMServerEngine(urls=["http://127.0.0.1:1"]))


GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "given", "vllm", "path", "kind", "why"),
    [
        ("auto", CPU, True, "m", "transformers", "no GPU here"),
        ("cpu", CPU, True, "m", "transformers", "not on a GPU"),
        ("auto", GPU, False, "m", "transformers", "vLLM is not installed"),
        ("auto", GPU, True, "m.gguf", "transformers", "vLLM does not sample from a GGUF file"),
        ("cuda:1", GPU, True, "m", "vllm", "a GPU, and vLLM is installed"),
    ],
)
def test_the_machine_chooses_the_engine(
    device: str, given: torch.device, vllm: bool, path: str, kind: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_module, "resolve_device", lambda name: given)
    monkeypatch.setattr(choice_module, "find_spec", lambda name: object() if vllm else None)
    fields = {"questions": {"path": "q"}, "student": {"path": path}, "teachers": [{"name": "t"}]}
    config = checked({**fields, "engine": {"device": device, "score_rows": 7}})
    assert isinstance(config.engine, AutoEngine)
    engine, told = choose(config)
    assert (engine.kind, engine.device, engine.score_rows, told) == (kind, device, 7, why)
    own = checked({**fields, "engine": {"kind": "transformers", "rows": 3}})
    assert choose(own) == (own.engine, "as set")


def test_a_device_that_is_not_here_is_named_before_an_engine_is_chosen() -> None:
    fields = {"questions": {"path": "q"}, "student": {"path": "m"}, "teachers": [{"name": "t"}]}
    with pytest.raises(InputError, match=r"^engine\.device: 'gpu' is not a device"):
        choose(checked({**fields, "engine": {"device": "gpu"}}))


def test_versions_of_an_engine_stand_before_what_all_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = EngineChoice(TransformersEngine()).fingerprint
    assert plain.startswith("transformers ") and f"torch {torch.__version__.partition('+')[0]}" in plain
    made = SimpleNamespace(versions="other 1.2 ", longest=None)
    monkeypatch.setattr(choice_module, "implementation", lambda place: lambda settings: made)
    assert EngineChoice(TransformersEngine()).fingerprint == f"other 1.2 {plain}"


def limited(monkeypatch: pytest.MonkeyPatch, longest: int | None, limit: int | None) -> tuple[EngineChoice, list[str]]:
    """An engine of a longest sequence, and a model of a limit; with the models that were looked at."""
    looked: list[str] = []

    def look(model: Model) -> Limit | None:
        looked.append(model.path)
        return None if limit is None else Limit(limit, "max_position_embeddings")

    made = SimpleNamespace(versions="", longest=longest)
    monkeypatch.setattr(choice_module, "implementation", lambda place: lambda settings: made)
    monkeypatch.setattr(choice_module, "model_limit", look)
    return EngineChoice(TransformersEngine()), looked


@pytest.mark.parametrize(
    ("longest", "limit", "message"),
    [
        (None, None, None),
        (30, 30, None),
        (29, None, "10 tokens after a prompt of 20 are more than the engine's 29; lower it, or raise"),
        (29, 10, "more than the engine's 29"),
        (None, 29, r"prompt of 20 \(question 'q'\) are more than the 29 that 'm' can take \(max_.*\); set it to 9 or"),
        (None, 22, "set it to 2 or less"),
        (None, 21, "shorten the prompt"),
        (None, 5, "shorten the prompt"),
    ],
)
def test_what_would_not_fit_is_refused_with_what_would_be_right(
    longest: int | None, limit: int | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, _ = limited(monkeypatch, longest, limit)
    arguments: tuple[Any, ...] = ("student.path", Model(path="m"), 20, 10, "question 'q'")
    if message is None:
        choice.check_draws(*arguments)
    else:
        with pytest.raises(InputError, match=f"^sampling.max_tokens: .*{message}"):
            choice.check_draws(*arguments)


def test_each_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, looked = limited(monkeypatch, None, 100)
    for _ in range(3):
        choice.check_length("student.path", Model(path="m"), 1, 2, "q")
        choice.check_length("teachers[0].model.path", Model(path="n"), 1, 2, "q")
    assert looked == ["m", "n"]


def test_a_configuration_that_cannot_be_read_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"^teachers\[1\]\.model\.path: .* cannot be loaded"):
        EngineChoice(TransformersEngine()).check_length("teachers[1].model.path", Model(path=str(tmp_path)), 1, 2, "q")


def test_the_backend_samples_with_the_student_itself(models: Path) -> None:
    from tasks.engines.transformers.loading import load_transformers, stop_tokens, vocabulary_size

    model, settings = Model(path=str(models / "student")), TransformersEngine(device="cpu")
    tokenizer = ModelLibrary().tokenizer(model)
    backend = TransformersBackend(settings)
    assert (backend.versions, backend.longest) == ("", None)
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return load_transformers(model, settings, vocabulary_size(tokenizer), lambda: None)

    sampler = EngineChoice(settings).sampler(model, tokenizer, [], load)
    assert isinstance(sampler, TransformersSampler) and loads == [1]
    stop = stop_tokens(model, tokenizer)
    assert json.loads((models / "student" / "config.json").read_text())["eos_token_id"] in stop
    draws = [Draw(0, 0, None, 5, seed) for seed in range(8)]
    first = sampler.continue_prefixes([Trunk((3, 4))], draws, 1.0)
    one = backend.sampler(model, stop, load).continue_prefixes([Trunk((3, 4))], draws[3:4], 1.0)
    assert one[0].tokens.tolist() == first[3].tokens.tolist()
    for end in first:
        assert end.truncated == (int(end.tokens[-1]) not in stop) and len(end.tokens) <= 5
    assert sampler.decoded == sum(len(end.tokens) for end in first)


def test_texts_end_completions_with_the_token_that_contains_them(models: Path) -> None:
    from tasks.engines.transformers.loading import load_transformers, stop_tokens, vocabulary_size

    model, settings = Model(path=str(models / "student")), TransformersEngine(device="cpu")
    tokenizer = ModelLibrary().tokenizer(model)
    sampler = EngineChoice(settings).sampler(
        model, tokenizer, ["nsw", "="], lambda: load_transformers(model, settings, vocabulary_size(tokenizer))
    )
    draws = [Draw(0, 0, None, 60, seed) for seed in range(40)]
    ends = sampler.continue_prefixes([Trunk((3, 4))], draws, 1.0)
    texts = [[tokenizer.decode([int(t)]) for t in end.tokens] for end in ends if not end.truncated]
    own = {tokenizer.decode([i]) for i in stop_tokens(model, tokenizer)}
    assert {of[-1] for of in texts} >= {"answer", "="}
    for of in texts:
        assert of[-1] in {"answer", "=", *own} and not {"answer", "="} & set(of[:-1])


@pytest.mark.parametrize(
    ("draw", "end"),
    [
        (Draw(0, 0, 1, 5, 0), False),
        (Draw(0, 0, 1, 0, 0), False),  # it has ended by itself
        (Draw(0, 0, 2, 0, 0), True),
        (Draw(0, 0, None, -3, 0), True),
        (Draw(0, 0, None, 1, 0), None),
        (Draw(0, 0, 2, 1, 0), None),
    ],
)
def test_draws_that_need_no_decoding(draw: Draw, end: bool | None) -> None:
    found = ended(draw, frozenset([1]))
    if end is None:
        assert found is None
    else:
        assert isinstance(found, Continuation) and len(found.tokens) == 0 and found.truncated == end


def test_the_prefix_of_a_draw_ends_in_its_token() -> None:
    trunk = Trunk((7, 8), (1, 2, 3))
    assert trunk.prefix(Draw(0, 2, 9, 1, 0)) == [7, 8, 1, 2, 9]
    assert trunk.prefix(Draw(0, 0, None, 1, 0)) == [7, 8] and trunk.prefix(Draw(0, 3, 0, 1, 0)) == [7, 8, 1, 2, 3, 0]
