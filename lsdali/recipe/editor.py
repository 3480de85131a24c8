"""The JSON Schema of recipes, for editors: what the parser reads, short forms included."""

from typing import Any

from lsdali.recipe.schema import Recipe


def editor_schema() -> dict[str, Any]:
    """Return the schema of Recipe that also allows `model: NAME` for `model: {name: NAME}`, and keys `x-...`."""
    schema = Recipe.model_json_schema()
    kinds = schema["$defs"]
    short = {f"#/$defs/{name}" for name, kind in kinds.items() if "name" in kind.get("properties", {})}
    for kind in (schema, *kinds.values()):
        if "properties" in kind:
            kind["patternProperties"] = {"^x-": {}}
            kind["properties"] = {key: with_short_form(value, short) for key, value in kind["properties"].items()}
    return schema


def with_short_form(part: dict[str, Any], short: set[str]) -> dict[str, Any]:
    """Return a property's schema with text beside the parts that have a name."""
    if "items" in part:
        return {**part, "items": with_short_form(part["items"], short)}
    choices = part.get("anyOf", [part])
    refs = [ref.get("$ref") for choice in choices for ref in choice.get("oneOf", [choice])]
    if not any(ref in short for ref in refs):
        return part
    texts = {key: part[key] for key in ("default", "description") if key in part}
    bare = [{key: value for key, value in choice.items() if key not in texts} for choice in choices]
    return {"anyOf": [*bare, {"type": "string"}]} | texts
