"""What all resource models share, so that a check is stated once and holds in the API server and in Python.

A `Rule` carries its CEL expression and its Python predicate side by side, and one message for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, to_jsonable_python

GROUP = "understudy.dev"
VERSION = "v1alpha1"

MAX_MESSAGE_LENGTH = 1024
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PLACEHOLDER = re.compile(r"\{([A-Za-z.]+)\}")


@lru_cache(maxsize=1024)
def duration_s(text: str) -> float:
    """Seconds of a duration such as `250ms`, `1m30s` or `14d`.

    Raises:
        ValueError: If `text` is not made of whole numbers with units.
    """
    parts = re.findall(r"(\d+)(ms|[smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(
            f"duration {text!r} is not readable: write whole numbers with units, such as 250ms or 1m30s"
        )
    return float(sum(int(number) * _UNIT_S[unit] for number, unit in parts))


def _shorten(value: object) -> object:
    """Cut a message to what the schema holds: a long error must not cost us the status write."""
    if isinstance(value, str) and len(value) > MAX_MESSAGE_LENGTH:
        return value[: MAX_MESSAGE_LENGTH - 1] + "…"
    return value


# The form that CEL's duration() understands, with whole numbers, as in the Gateway API.
_DURATION = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
Duration = Annotated[str, Field(pattern=_DURATION, max_length=16)]
Sha256 = Annotated[str, Field(pattern=r"^[a-f0-9]{64}$", max_length=64)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Replicas = Annotated[int, Field(ge=0, le=2**31 - 1)]
Generation = Annotated[int, Field(ge=0, le=2**53 - 1)]
Message = Annotated[str, BeforeValidator(_shorten), Field(max_length=MAX_MESSAGE_LENGTH)]
Timestamp = AwareDatetime


@dataclass(frozen=True)
class Rule:
    """One condition over several fields of a model.

    Attributes:
        field: Path below the model of the field to name in a refusal, such as `reference.target`.
        cel: The condition as the API server evaluates it; `self` is the model.
        holds: The same condition over the parsed model.
        message: What is wrong and how to mend it; `{path.below.the.model}` inserts a value.
    """

    field: str
    cel: str
    holds: Callable[[Any], bool]
    message: str

    def schema(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        if paths := _PLACEHOLDER.findall(self.message):
            # Not `+`: the cost estimator knows no bound for a number made a string, and refuses the CRD.
            values = ", ".join(f"self.{path}" for path in paths)
            message = {"messageExpression": f"'{_PLACEHOLDER.sub('%s', self.message)}'.format([{values}])"}
        else:
            message = {"message": self.message}
        return {"rule": self.cel, **message, "fieldPath": f".{self.field}"}

    def explain(self, model: ApiModel) -> str:
        """The message, filled from `model`."""
        fields = model.model_dump(mode="json", by_alias=True)
        return _PLACEHOLDER.sub(lambda match: _show(_lookup(fields, match[1])), self.message)


def _lookup(fields: Mapping[str, Any], path: str) -> Any:
    value: Any = fields
    for name in path.split("."):
        value = value[name]
    return value


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class ApiModel(BaseModel):
    """A part of a resource: camelCase outside, snake_case inside, never changed in place.

    Unknown fields are ignored, so that an older operator survives fields of a newer CRD.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obeys_rules(self) -> ApiModel:
        for rule in self.rules:
            if not rule.holds(self):
                raise ValueError(rule.explain(self))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Add what JSON Schema leaves out: the rules, and defaults made by a factory."""
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        for field in cls.model_fields.values():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            described = body["properties"][field.alias]
            described.pop("default", None)
            # Whole objects, not {}: the API server checks rules on a default before it fills in what lies below.
            if default not in (None, (), {}):
                described["default"] = to_jsonable_python(default, by_alias=True, exclude_none=True)
        if cls.rules:
            body["x-kubernetes-validations"] = [rule.schema() for rule in cls.rules]
        return schema


class ObjectMeta(ApiModel):
    """The part of a Kubernetes object's metadata that is read here."""

    name: str = ""
    namespace: str = "default"
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: Timestamp | None = None
    deletion_timestamp: Timestamp | None = None


def refusal(error: ValidationError) -> str:
    """What is wrong with a resource, in one sentence that names the field, the value and the mend."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{path} is missing: add it"
    if first["type"] == "value_error":
        return f"{path}: {first['ctx']['error']}"
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    expected = re.sub(r"^\w+ (?=should )", "", first["msg"])  # pydantic's subject: Input, String, Tuple
    if first["input"] is False:
        expected += ' (YAML reads a bare Off as false: write "Off")'
    if first.get("ctx", {}).get("pattern") == _DURATION:
        expected = "should be whole numbers with units, such as 250ms or 1m30s"
    return f"{path} is {shown}: it {expected}"
