"""Which model is at work, and where text goes when it is asked."""

from __future__ import annotations

from typing import Final

from mana.domain.errors import Invalid
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.rules import Rules
from mana.protocol.messages import ModelInfo

DEFAULT_MODEL: Final = "default"


def model_from_settings(
    url: str | None, key: str | None = None, model: str | None = None
) -> OpenAiCompatible | Rules:
    """Return the model of `MANA_LLM_URL`, `MANA_LLM_KEY` and `MANA_LLM_MODEL`.

    Without an address it is the offline rules model. Raises Invalid for an address that is
    none, and for a key or a model without an address, which would silently do nothing.
    """
    if not (url or "").strip():
        if (key or "").strip() or (model or "").strip():
            raise Invalid("MANA_LLM_KEY and MANA_LLM_MODEL need MANA_LLM_URL")
        return Rules()
    return OpenAiCompatible(
        url or "", key=(key or "").strip(), model=(model or "").strip() or DEFAULT_MODEL
    )


def model_info(model: OpenAiCompatible | Rules) -> ModelInfo:
    """Return what the consent and the page say about a model."""
    return ModelInfo(
        endpoint=model.endpoint,
        model=model.name,
        description=model.description,
        local=model.local,
    )
