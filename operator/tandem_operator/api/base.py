"""What every API type shares: camelCase names, immutability, CEL rules and the field types that Kubernetes knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule of the CRD (`x-kubernetes-validations`); the message names the field and the remedy."""

    rule: str
    message: str


class ApiModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        if cls.rules:
            schema["x-kubernetes-validations"] = [{"rule": r.rule, "message": r.message} for r in cls.rules]
        return reference


def section(cls: type[ApiModel], description: str) -> Any:
    """A field holding an object that is there, with its own defaults, when the user leaves it out."""
    return Field(default_factory=cls, description=description, json_schema_extra={"default": {}})


def keyed(*keys: str) -> dict[str, Any]:
    """A list that server-side apply merges by these keys."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Name of another Kubernetes object."""
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Path = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/")]
Arg = Annotated[str, Field(min_length=3, max_length=1024)]
Quantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "pattern": r"^(\+)?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$",
        }
    ),
]
"""Kubernetes quantity such as 8, 500m or 64Gi."""
StringMap = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
