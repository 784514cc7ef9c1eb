"""Strict request models, and their errors in the API's terms."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tandem_runtime.core.errors import RequestError

MAX_JSON_DEPTH = 32
"""Of values that are passed on as they are; deeper ones would break recursive consumers such as templates."""

MAX_ERRORS = 1000
"""In a body for which the first one is still named."""

_NOT_SUPPORTED = "x-not-supported"
_SIZES = frozenset({"too_long", "too_short", "string_too_long", "string_too_short"})
_SHOULD = "Input should be "
"""How pydantic begins what it says of a wrong type or value."""


class RequestModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=RequestModel)


def not_supported(what: str) -> Any:
    """A field of OpenAI's API that is accepted only with values that ask for nothing."""
    return Field(default=None, json_schema_extra={_NOT_SUPPORTED: what})


def ignored(why: str) -> Any:
    """A field that changes nothing here, whatever its value."""
    return Field(default=None, exclude=True, description=f"Accepted and ignored: {why}.")


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return value
    raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH} levels")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


JsonObject = Annotated[dict[str, Any], AfterValidator(_shallow)]


def _boolean(value: object) -> object:
    """pydantic's literals compare with ==, for which 0.0 is False."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{_SHOULD}a boolean")
    return value


Off = Annotated[Literal[False], BeforeValidator(_boolean)]
On = Annotated[Literal[True], BeforeValidator(_boolean)]


def parse(model: type[Model], body: object) -> Model:
    """Raises `RequestError` that names the first wrong field."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        # Spelling out each of a million errors would take seconds, during which no other stream moves.
        if error.error_count() > MAX_ERRORS:
            raise RequestError(f"the body has {error.error_count()} errors") from None
        raise _refusal(model, body, error) from None


def _refusal(model: type[RequestModel], body: dict[str, Any], invalid: ValidationError) -> RequestError:
    errors = invalid.errors(include_url=False, include_context=False, include_input=False)
    paths = [_path(error["loc"], body, error["type"]) for error in errors]
    # Of a union's branches, the one that took the value's type but not its size is the one that was meant; else the
    # one that got furthest into the value.
    sized = [path for error, path in zip(errors, paths, strict=True) if error["type"] in _SIZES]
    path = max(sized or paths, key=lambda path: (len(path), [step for step in path if isinstance(step, int)]))
    candidates = [error for error, its_path in zip(errors, paths, strict=True) if its_path == path]
    candidates = [error for error in candidates if not sized or error["type"] in _SIZES]
    error = candidates[0]
    if (unsupported := _unsupported(model, path)) is not None:
        name, what = unsupported
        return RequestError(f"'{name}' is not supported: {what}", param=name)
    name = _dotted(path)
    if error["type"] == "extra_forbidden":
        return RequestError(f"'{name}' is not supported", param=name)
    if error["type"] == "union_tag_not_found":
        # "Unable to extract tag using discriminator 'role'"
        name = f"{name}.{error['msg'].split(chr(39))[1]}"
        return RequestError(f"'{name}' is required", param=name)
    if error["type"] == "missing":
        return RequestError(f"'{name}' is required", param=name)
    if name:
        return RequestError(f"'{name}': {_joined([one['msg'] for one in candidates])}", param=name)
    # A check across fields names the one at fault first.
    message = error["msg"].removeprefix("Value error, ")
    quoted = re.match(r"'([\w.\[\]]+)'", message)
    return RequestError(message, param=quoted[1] if quoted else None)


def _unsupported(model: type[RequestModel], path: list[int | str]) -> tuple[str, str] | None:
    """The first field on the way that is `not_supported`, and what it would ask for."""
    models = [model]
    for index, step in enumerate(path):
        if isinstance(step, int):
            continue
        fields = [one.model_fields[step] for one in models if step in one.model_fields]
        for field in fields:
            extra = field.json_schema_extra
            if isinstance(extra, dict) and _NOT_SUPPORTED in extra:
                return _dotted(path[: index + 1]), str(extra[_NOT_SUPPORTED])
        models = [inner for field in fields for inner in _models_in(field.annotation)]
    return None


def _models_in(annotation: Any) -> list[type[RequestModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _joined(messages: list[str]) -> str:
    """What a value should be, where a union's branches each say their own."""
    if not all(message.startswith(_SHOULD) for message in messages):
        return messages[0].removeprefix("Value error, ")
    return _SHOULD + " or ".join(dict.fromkeys(message.removeprefix(_SHOULD) for message in messages))


def _path(loc: tuple[int | str, ...], body: object, kind: str) -> list[int | str]:
    """`loc` without the names of union branches that pydantic puts into it."""
    path: list[int | str] = []
    value = body
    for index, step in enumerate(loc):
        inside = step in value if isinstance(value, dict) else isinstance(step, int) and isinstance(value, list)
        if inside:
            value = value[step]  # type: ignore[index]
        elif not (kind == "missing" and index == len(loc) - 1):
            continue
        path.append(step)
    return path


def _dotted(path: list[int | str]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
