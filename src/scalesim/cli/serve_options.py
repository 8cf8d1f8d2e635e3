"""Options of ``scalesim serve``, by the names that vLLM gives them. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scalesim.checks import place_of
from scalesim.cli.values import COUNT, MEMORY_OR_AUTO, PORT, POSITIVE, SEED, SHARE
from scalesim.config import CallLimits, EngineConfig, SchedulerConfig
from scalesim.errors import ConfigError
from scalesim.memory.eviction.policies import ENGINE_POLICIES
from scalesim.regular_file import open_regular
from scalesim.strict_json import decode_utf8

_ENGINE, _SCHEDULER, _CALLS = EngineConfig(), SchedulerConfig(), CallLimits()
_MAX_KEY_BYTES = 1 << 16
_VARIABLES = ("SCALESIM_API_KEY", "VLLM_API_KEY")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Serve a model over OpenAI's HTTP API, until it is told to stop.

    Any client of OpenAI's works with the URL that is printed. The options have vLLM's names; a YAML
    file with the same names can be given with --config FILE, and what is typed counts more.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A folder in Hugging Face's layout, or the id of a model on the hub."""
    host: str = "127.0.0.1"
    """The address to listen on. One that other machines reach needs a key."""
    port: Annotated[int, PORT] = 8000
    """The port to listen on; 0: any that is free."""
    served_model_name: tuple[str, ...] = ()
    """What clients may call the model; replies have the first. MODEL if not given."""
    api_key: tuple[str, ...] = ()
    """Keys, any of which opens the API. Others on this machine can read a command line: better set
    SCALESIM_API_KEY, or give a file."""
    api_key_file: Path | None = None
    """A file with a key a line."""
    admin_key_file: Path | None = None
    """A file with a key a line, for the routes that change the server; without it, there are
    none."""
    enable_lora: tyro.conf.FlagCreatePairsOff[bool] = False
    """Serve adapters; --lora-modules says the same."""
    lora_modules: tuple[str, ...] = ()
    """Adapters to serve, as NAME=FOLDER or NAME=URL; clients ask for the model NAME."""
    max_loras: Annotated[int | None, COUNT] = None
    """Accepted, and without effect: adapters have no slots here."""
    max_lora_rank: Annotated[int | None, COUNT] = None
    """Accepted, and without effect: an adapter has the rank that it has."""
    enable_embeddings: tyro.conf.FlagCreatePairsOff[bool] = False
    """Serve /v1/embeddings: the model's last hidden states."""
    max_model_len: Annotated[int | None, COUNT] = _ENGINE.max_model_len
    """Most tokens of prompt and output; the model's own limit if not given."""
    max_num_seqs: Annotated[int, COUNT] = _SCHEDULER.max_num_seqs
    """Requests that run at once."""
    max_num_batched_tokens: Annotated[int, COUNT] = _SCHEDULER.max_num_batched_tokens
    """Tokens of one step."""
    max_open_requests: Annotated[int, COUNT] = _CALLS.max_open_requests
    """Requests that may be queued or running; what is above is refused with 429."""
    request_timeout: Annotated[float, POSITIVE] = 3600.0
    """Seconds after which a request ends with 504."""
    drain_timeout: Annotated[float, POSITIVE] = 30.0
    """Seconds that open requests have to end once the server is told to stop."""
    gpu_memory_utilization: Annotated[float | None, SHARE] = _ENGINE.gpu_memory_utilization
    """Share of a GPU's memory to use; what is left of it if not given."""
    chat_template: str | None = None
    """A file with a chat template, its source, or chatml; the model's own if not given."""
    generation_config: tyro.conf.FlagCreatePairsOff[bool] = _ENGINE.generation_config
    """What the model's generation_config.json says of sampling holds where a request is silent."""
    dtype: str = _ENGINE.dtype
    """Of weights and KV: auto, float32, float16 or bfloat16."""
    kv_cache_dtype: str = _ENGINE.kv_dtype
    """Of KV: auto, which is dtype's, or fp8, which takes a byte an element."""
    quantization: str | None = _ENGINE.quantize
    """Weights in int8 or float8."""
    device: str = _ENGINE.device
    """Where to compute: cpu, cuda, cuda:1, or auto, which takes a GPU where there is one."""
    threads: Annotated[int | None, COUNT] = _ENGINE.threads
    """Threads that a CPU computes with; as many as cores and container allow if not given."""
    device_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.device_memory)
    """Size of the device pool, like 20GB or 512MiB; auto: 1GB, or what a GPU has left."""
    host_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.host_memory)
    """Size of the host pool; auto: 4GB, or beside a GPU 70 % of what is available."""
    disk: str | None = _ENGINE.disk
    """A folder for state that the host pool has no room for."""
    disk_memory: Annotated[str, MEMORY_OR_AUTO] = str(_ENGINE.disk_memory)
    """Most bytes in that folder; auto: 80 % of what is free there."""
    policy: Annotated[str, tyro.conf.arg(help=f"One of: {', '.join(ENGINE_POLICIES)}.")] = (
        _ENGINE.policy
    )
    block_size: Annotated[int | None, COUNT] = _ENGINE.block_size
    """Tokens a page; chosen for the model if not given."""
    seed: Annotated[int, SEED] = _ENGINE.seed
    """Of all sampling that a request does not seed."""
    dummy_weights: tyro.conf.FlagCreatePairsOff[bool] = False
    """Random weights: needs the model's config only."""

    def engine(self) -> EngineConfig:
        """The engine's settings. Raises ``ConfigError``."""
        return EngineConfig(
            device=self.device,
            threads=self.threads,
            device_memory=self.device_memory,
            host_memory=self.host_memory,
            disk=self.disk,
            disk_memory=self.disk_memory,
            gpu_memory_utilization=self.gpu_memory_utilization,
            policy=self.policy,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            chat_template=self.chat_template,
            generation_config=self.generation_config,
            dtype=self.dtype,
            kv_dtype=self.kv_cache_dtype,
            quantize=self.quantization,
            seed=self.seed,
            scheduler=SchedulerConfig(
                max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens
            ),
            limits=CallLimits(max_open_requests=max(self.max_open_requests, 16_384)),
        )

    def server(self, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """The fields of ``ServerConfig`` but for its limits. Raises ``ConfigError``."""
        keys = [*self.api_key, *_keys_in(self.api_key_file)]
        for name in _VARIABLES:
            keys += environment.get(name, "").split()
        return {
            "names": self.served_model_name or (self.model,),
            "host": self.host,
            "port": self.port,
            "api_keys": tuple(dict.fromkeys(keys)),
            "admin_keys": tuple(_keys_in(self.admin_key_file)),
            "embeddings": self.enable_embeddings,
        }

    def limits(self) -> dict[str, Any]:
        """The fields of ``ServerLimits`` that are options."""
        return {
            "max_open_requests": self.max_open_requests,
            "request_timeout": self.request_timeout,
            "drain_timeout": self.drain_timeout,
        }

    def adapters(self) -> dict[str, str | Path]:
        """The folders and URLs of the adapters, by name. Raises ``ConfigError``."""
        found: dict[str, str | Path] = {}
        for word in self.lora_modules:
            name, sign, folder = word.partition("=")
            if not (name and sign and folder):
                raise ConfigError(f"--lora-modules {word[:80]!r} must be NAME=FOLDER or NAME=URL")
            if name in found:
                raise ConfigError(f"--lora-modules names {name[:80]!r} twice")
            found[name] = place_of("--lora-modules", folder, ConfigError)
        return found


def _keys_in(path: Path | None) -> list[str]:
    if path is None:
        return []
    with open_regular(path, ConfigError) as file:
        keys = decode_utf8(file.read(_MAX_KEY_BYTES), str(path), ConfigError).split()
    if not keys:
        raise ConfigError(f"{path} has no key")
    return keys
