"""A tier's configuration in the words of ray.serve.llm, as plain data: nothing of Ray is imported.

Fields are those of ``ray.serve.llm.LLMConfig`` of Ray 2.60.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import PurePosixPath

from cloud.backend_config import VllmConfig
from cloud.config import TierConfig
from cloud.engines.base import check_adapter
from cloud.errors import ConfigError, ModelUnusable


def llm_config(tier: TierConfig, *, name: str, drain_s: float) -> dict[str, object]:
    """Keyword arguments of ``ray.serve.llm.LLMConfig``.

    Arguments:
        tier: with the engine ``vllm``.
        name: of the deployment.
        drain_s: time for answers that are under way when a replica is retired, in seconds.
    """
    vllm = settings(tier)
    config: dict[str, object] = {
        "model_loading_config": {"model_id": base_id(tier), "model_source": tier.model},
        "engine_kwargs": engine_kwargs(tier),
        "placement_group_config": {
            "bundle_per_worker": {
                "CPU": vllm.cpus_per_worker,
                "GPU": vllm.gpus_per_worker,
                **tier.placement.resources,
            },
            "strategy": vllm.placement,
        },
        "deployment_config": {
            "name": name,
            "autoscaling_config": {
                "min_replicas": tier.autoscaling.min_replicas,
                "max_replicas": tier.autoscaling.max_replicas,
                "target_ongoing_requests": tier.ongoing_requests,
            },
            "max_ongoing_requests": tier.ongoing_requests,
            "max_queued_requests": tier.max_queued_requests,
            "graceful_shutdown_timeout_s": drain_s + 2,
        },
    }
    if vllm.accelerator_type is not None:
        config["accelerator_type"] = vllm.accelerator_type
    if vllm.adapters_url is not None:
        config["lora_config"] = {
            "dynamic_lora_loading_path": vllm.adapters_url,
            "max_num_adapters_per_replica": vllm.most_adapters,
        }
    return config


def engine_kwargs(tier: TierConfig) -> dict[str, object]:
    """Arguments of vLLM: the operator's, and those that follow from the tier."""
    vllm = settings(tier)
    follows: dict[str, object] = {
        "max_model_len": tier.context_tokens,
        "max_num_seqs": tier.ongoing_requests,
        "tensor_parallel_size": vllm.tensor_parallel,
        "pipeline_parallel_size": vllm.pipeline_parallel,
        # llguidance, which keeps schemas and expressions on devices and in the other tiers.
        "structured_outputs_config": {"backend": "guidance"},
    }
    if vllm.adapters_url is not None:
        follows |= {"enable_lora": True, "max_loras": vllm.most_adapters}
    return {**vllm.engine_kwargs, **follows}


def base_id(tier: TierConfig) -> str:
    """How ray.serve.llm names the tier's model."""
    return tier.name


def request_id(tier: TierConfig) -> str:
    """The model that requests name: with the tier's adapter, where it has one."""
    adapter = settings(tier).adapter
    return base_id(tier) if adapter is None else f"{base_id(tier)}:{adapter}"


def adapted_id(tier: TierConfig, adapter: str) -> str:
    """The model that a request for one of ``tier.adapters`` names.

    Raises:
        InvalidInput: the tier has no such adapter.
    """
    check_adapter(adapter, tier.adapters)
    return f"{base_id(tier)}:{PurePosixPath(tier.adapters[adapter])}"


def settings(tier: TierConfig) -> VllmConfig:
    """The tier's ``vllm`` section; the configuration has seen to it that it is there."""
    if tier.vllm is None:
        raise ConfigError(f"tier {tier.name} has no vllm section")
    return tier.vllm


def require_vllm() -> None:
    """Raise ``ModelUnusable`` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise ModelUnusable(
            "the engine vllm is not installed: pip install 'edge-cloud-cascade[cloud,vllm]', in an "
            "environment or image of its own"
        )
