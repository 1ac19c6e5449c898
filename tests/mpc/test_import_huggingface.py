"""Models of Hugging Face's Transformers run on secrets as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from strongroom import mpc
from strongroom.errors import FormatError
from tests.mpc.imported import on_secrets

pytestmark = pytest.mark.filterwarnings("ignore")
transformers = pytest.importorskip("transformers", reason="Transformers is not installed")

_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_TOKENS = {"vocab_size": 30, "max_position_embeddings": 16}
_GPT = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}


def _models() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("BertForSequenceClassification", "BertConfig", {**_SMALL, **_TOKENS}),
        (
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, **_TOKENS},
        ),
        ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 30, "use_cache": False, **_GPT}),
        ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 1, "use_cache": False, **_SMALL, **_TOKENS}),
        ("ViTForImageClassification", "ViTConfig", {"image_size": 8, "patch_size": 4, **_SMALL}),
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("kind", "config", "settings"), _models())
def test_a_model_with_secret_weights_and_inputs(
    kind: str, config: str, settings: dict[str, Any], attention: str
) -> None:
    torch.manual_seed(6)

    def architecture() -> Any:
        return getattr(transformers, kind)(
            getattr(transformers, config)(attn_implementation=attention, **settings)
        ).eval()

    model = architecture()
    image = kind.startswith("ViT")
    x = torch.randn(1, 3, 8, 8) if image else torch.randint(0, 30, (1, 5))
    with torch.no_grad():
        wanted = model(x).logits
    found = on_secrets(model, architecture, x, classes=None if image else 30)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)


def test_a_checkpoint_in_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(6)
    config = transformers.BertConfig(**_SMALL, **_TOKENS)
    net, x = transformers.BertForSequenceClassification(config).eval(), torch.randint(0, 30, (1, 5))
    net.save_pretrained(tmp_path)
    model = mpc.load_model(tmp_path)
    with torch.no_grad():
        wanted = net(x).logits
        torch.testing.assert_close(model(x).logits, wanted)
    found = on_secrets(model, lambda: mpc.load_architecture(tmp_path), x, classes=30)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)
    (tmp_path / "model.safetensors").unlink()
    assert mpc.load_architecture(tmp_path).state_dict().keys() == model.state_dict().keys()
    with pytest.raises(FormatError, match="cannot load"):
        mpc.load_model(tmp_path)


def test_a_checkpoint_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    for said in (
        {"architectures": ["MyModel"]},
        {"architectures": ["BertModel"], "auto_map": {"AutoModel": "m.M"}},
        {},
    ):
        (tmp_path / "config.json").write_text(json.dumps(said))
        with pytest.raises(FormatError, match="wanted a model of Transformers' own"):
            mpc.load_model(tmp_path)
