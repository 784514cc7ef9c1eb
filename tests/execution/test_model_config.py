from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.step_driver import tiny_execution_config
from support.tiny_models import EOS_TOKEN_ID, build_tiny_model, edit_config
from tandem_contract.flags import ServeFlags
from tandem_runtime.core.errors import StartupError, UnsupportedModelError
from tandem_runtime.execution.config import FAMILIES, ModelConfig
from tandem_runtime.execution.fingerprint import fingerprint
from tandem_runtime.execution.settings import ExecutionConfig, check_divisible, parse_size

QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "max_position_embeddings": 32768,
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
    "eos_token_id": 151645,
}
"""Qwen2.5-32B-Instruct's own fields."""
QWEN3_MOE = QWEN25 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_key_value_heads": 4,
    "num_attention_heads": 64,
}


def parse(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_folder(tmp_path, **kwargs)


def test_an_older_style_qwen25_config(tmp_path: Path) -> None:
    model = parse(tmp_path, QWEN25, {"eos_token_id": [151645, 151643]})
    assert (model.qkv_bias, model.o_bias, model.qk_norm) == (True, False, False)
    assert (model.head_dim, model.dtype) == (128, "bfloat16")
    assert model.rope == {"rope_type": "default", "rope_theta": 1000000.0}
    assert model.eos_token_ids == (151645, 151643)


def test_without_generation_config_the_model_config_names_the_eos(tmp_path: Path) -> None:
    assert parse(tmp_path, QWEN25).eos_token_ids == (151645,)


def test_experts_under_either_name(tmp_path: Path) -> None:
    old = parse(tmp_path, QWEN3_MOE)
    renamed = {k: v for k, v in QWEN3_MOE.items() if k != "num_experts"} | {"num_local_experts": 128}
    assert parse(tmp_path, renamed) == old
    assert old.moe is not None
    assert (old.moe.num_experts, old.moe.experts_per_token) == (128, 8)


def test_which_layers_are_sparse(tmp_path: Path) -> None:
    model = parse(tmp_path, QWEN3_MOE | {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert [model.is_moe_layer(i) for i in range(6)] == [False, True, False, False, False, True]


def test_rope_under_either_name_and_by_override(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    old = parse(tmp_path, QWEN25 | {"rope_scaling": scaling})
    new = parse(
        tmp_path,
        {k: v for k, v in QWEN25.items() if k != "rope_theta"}
        | {"rope_parameters": {**scaling, "rope_theta": 1000000.0, "rope_type": "yarn"}},
    )
    flag = parse(tmp_path, QWEN25, rope_scaling=json.dumps(scaling))
    assert old.rope == new.rope == flag.rope
    assert old.max_position_embeddings == 131072


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            f"MambaForCausalLM is not supported; supported: {', '.join(FAMILIES)}",
        ),
        ({"architectures": None}, "no model class under 'architectures'"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization awq"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type longrope"),
        ({"torch_dtype": "float64"}, "dtype float64"),
    ],
)
def test_what_is_not_supported_says_so_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        parse(tmp_path, QWEN25 | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["576", 0, 57.6, True, None])
def test_a_size_that_is_none_is_named(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StartupError, match=r"hidden_size must be a whole number of at least 1, not "):
        parse(tmp_path, QWEN25 | {"hidden_size": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": "Qwen2ForCausalLM"}, "architectures must be a list of names"),
        ({"architectures": 7}, "architectures must be a list of names"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be a whole number"),
        ({"max_position_embeddings": "32768"}, "max_position_embeddings must be a whole number"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number above 0"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be a number above 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"num_key_value_heads": 7}, "40 num_attention_heads cannot share 7 num_key_value_heads"),
        ({"head_dim": 127}, "head_dim must be even"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a whole number or a list of them"),
        ({"eos_token_id": [151645, None]}, "eos_token_id must be a whole number or a list of them"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object"),
        ({"rope_theta": "1e6"}, "rope_theta must be a number above 0"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "lacks the field 'low_freq_factor'"),
        (QWEN3_MOE | {"num_experts": "128"}, "num_experts must be a whole number"),
        (QWEN3_MOE | {"num_experts_per_tok": 129}, "num_experts_per_tok is 129, of 128 experts"),
        (QWEN3_MOE | {"mlp_only_layers": ["1"]}, "mlp_only_layers must be a whole number or a list"),
        (QWEN3_MOE | {"decoder_sparse_step": 0}, "decoder_sparse_step must be a whole number of at least 1"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Symptom: a traceback at start, or with an eos of text a server that never became ready."""
    with pytest.raises((StartupError, UnsupportedModelError)) as error:
        parse(tmp_path, QWEN25 | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_eos_of_the_wrong_kind_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"generation_config.json: eos_token_id must be a whole number"):
        parse(tmp_path, QWEN25, {"eos_token_id": ["</s>"]})


def test_an_eos_that_no_logit_has_is_none(tmp_path: Path) -> None:
    """Symptom: any request with `min_tokens` ended the engine: IndexError. Cause: the ids that it bars are indexes."""
    assert parse(tmp_path, QWEN25, {"eos_token_id": [151645, 152064, -1]}).eos_token_ids == (151645,)
    assert parse(tmp_path, QWEN25, {"eos_token_id": 999_999}).eos_token_ids == (151645,)


def test_a_field_that_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config.json lacks the field 'vocab_size'"):
        parse(tmp_path, {k: v for k, v in QWEN25.items() if k != "vocab_size"})


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"config.json does not exist"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StartupError, match=r"config.json cannot be read"):
        ModelConfig.from_folder(tmp_path)


def yarn(factor: float, original: int = 32768) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}


@pytest.mark.parametrize(
    ("flag", "scaling", "context"),
    [
        (None, {"rope_type": "default"}, 32768),
        ("none", {"rope_type": "default"}, 32768),
        ("yarn", yarn(100_000 / 32768), 100_000),
        ("yarn:4", yarn(4.0), 131_072),
        ("yarn:2:16384", yarn(2.0, 16384), 32768),
        ('{"type": "yarn"}', yarn(100_000 / 32768), 100_000),
    ],
)
def test_forms_of_the_rope_scaling_flag(
    tmp_path: Path, flag: str | None, scaling: dict[str, Any], context: int
) -> None:
    model = parse(tmp_path, QWEN25, rope_scaling=flag, max_model_len=100_000)
    assert model.rope == {"rope_theta": 1000000.0} | scaling
    assert model.max_position_embeddings == context


def test_a_flag_takes_the_configs_scaling_back_or_over(tmp_path: Path) -> None:
    scaled = QWEN25 | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    assert parse(tmp_path, scaled, rope_scaling="none").rope == {"rope_theta": 1000000.0, "rope_type": "default"}
    assert parse(tmp_path, scaled, rope_scaling="yarn:4").rope["rope_type"] == "yarn"
    assert parse(tmp_path, scaled, rope_scaling='{"factor": 3}').rope["factor"] == 3


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("yarn", "needs a factor; give --max-model-len"),
        ("yarn:0.5", "factor must be a number of at least 1, not 0.5"),
        ("yarn:nan", "factor must be a number"),
        ("yarn:4:0", "original_max_position_embeddings must be a number of at least 1"),
        ('{"rope_type": "yarn", "factor": "4"}', "factor must be a number of at least 1, not '4'"),
        ('{"rope_type": "linear"}', "rope_type linear needs a factor"),
    ],
)
def test_rope_scalings_that_cannot_be(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        parse(tmp_path, QWEN25, rope_scaling=flag)


def test_yarn_within_the_models_own_context_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parse(tmp_path, QWEN25)
    for length, warned in ((32768, True), (32769, False)):
        caplog.clear()
        ExecutionConfig.from_flags(ServeFlags(model=str(tmp_path), max_model_len=length, rope_scaling="yarn:4"))
        assert ("--rope-scaling none" in caplog.text) is warned


@pytest.mark.parametrize("text", ["yes", "[1]", "{", "yarn:", "yarn:x", "yarn:2:3:4", "linear:2", " yarn"])
def test_a_rope_scaling_flag_of_no_known_form(tmp_path: Path, text: str) -> None:
    with pytest.raises(StartupError, match="--rope-scaling"):
        parse(tmp_path, QWEN25, rope_scaling=text)


@pytest.mark.parametrize(("text", "size"), [("4GiB", 4 << 30), ("512MB", 512 * 10**6), ("77", 77), ("1.5 kib", 1536)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 potatoes", "-1GiB", "iB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(StartupError, match="--kv-cache-memory"):
        parse_size(text)


def test_tensor_parallel_sizes_that_do_not_divide(tmp_path: Path) -> None:
    model = parse(tmp_path, QWEN25)
    for world in (1, 2, 4, 8):
        check_divisible(model, world)
    with pytest.raises(StartupError, match=r"--tensor-parallel-size 3 does not divide .* 40 \(attention heads\)"):
        check_divisible(model, 3)
    with pytest.raises(StartupError, match=r"neither divides .* 8 KV heads"):
        check_divisible(parse(tmp_path, QWEN25 | {"num_attention_heads": 24, "head_dim": 128}), 12)


def test_a_longer_context_than_the_model_has(tmp_path: Path) -> None:
    parse(tmp_path, QWEN25)
    with pytest.raises(StartupError, match=r"--max-model-len 40000 exceeds the model's 32768"):
        ExecutionConfig.from_flags(ServeFlags(model=str(tmp_path), max_model_len=40000))


def test_fingerprints_tell_models_apart_and_name_the_field(tmp_path: Path) -> None:
    one = build_tiny_model(tmp_path / "one", "qwen3", seed=1)
    longer = build_tiny_model(tmp_path / "two", "qwen3", num_hidden_layers=2)
    print_of = lambda folder, **flags: fingerprint(tiny_execution_config(folder, **flags))  # noqa: E731
    base = print_of(one)
    assert base.digest() == print_of(one, tensor_parallel_size=2).digest()
    assert base.mismatch(print_of(longer)) == "model"
    assert base.mismatch(print_of(one, dtype="bfloat16")) == "model"
    assert base.mismatch(print_of(one, page_size=8)) == "page_size"
    yarn = '{"rope_type":"yarn","factor":2.0,"original_max_position_embeddings":512}'
    assert base.mismatch(print_of(one, rope_scaling=yarn)) == "rope"
    dummy = print_of(one, load_format="dummy")
    assert base.mismatch(dummy) == "model"
    assert dummy.digest() == print_of(one, load_format="dummy").digest()


def test_eos_of_the_tiny_models(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path, "llama")
    assert ModelConfig.from_folder(folder).eos_token_ids == (EOS_TOKEN_ID,)
    edit_config(folder, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert ModelConfig.from_folder(folder).eos_token_ids == ()
