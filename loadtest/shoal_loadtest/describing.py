"""What scenarios may say and objectives may be about, taken from the model itself, for people and programs."""

import inspect
import re
from typing import Any

import msgspec

from shoal_loadtest.objectives import OF_PHASES, OF_RUNS
from shoal_loadtest.scenario import model, reading
from shoal_loadtest.scenario.draw import FORMS, Draw

_TABLES: dict[str, type[model.Part]] = {
    "scenario": model.Scenario,
    "fleet": model.Fleet,
    "phase": model.Phase,
    "phase.arrival closed": model.Closed,
    "phase.arrival constant": model.Constant,
    "phase.arrival poisson": model.Poisson,
    "phase.arrival bursts": model.Bursts,
    "phase.arrival ramp": model.Ramp,
    "phase.arrival trace": model.Trace,
    "phase.rollout": model.Shape,
    "phase.commands": model.Commands,
    "phase.commands.mix": model.Kind,
    "tenant": model.Tenant,
    "fault": model.Fault,
    "template": model.Template,
    "trainer": model.Trainer,
}


def described(scenario: str) -> dict[str, Any]:
    """Return a scenario's text, and what it comes to with what it is based on. Raises BadValueError."""
    document = reading.document(scenario)
    reading.scenario(document)
    return {"text": reading.text_of(scenario).rstrip(), "document": document}


def keys() -> dict[str, tuple[str, dict[str, str]]]:
    """Return each table with what it is for, and its keys with their type and what they are where nothing is said."""
    found = {}
    for name, part in _TABLES.items():
        about = " ".join((inspect.getdoc(part) or "").split())
        fields = {field.encode_name: _field(field) for field in msgspec.structs.fields(part)}
        found[name] = (about, fields)
    return found


def metrics() -> dict[str, str]:
    """Return what objectives may be about; those of phases with `PHASE.` before them, too."""
    quantiles = [name for name in OF_PHASES if not name.endswith(("_p90_ms", "_p95_ms", "_mean_ms"))]
    hidden = {name for name in quantiles if "_broker_" in name and not name.endswith("p99_broker_ms")}
    return {name: OF_PHASES[name] for name in quantiles if name not in hidden} | OF_RUNS


def _field(field: msgspec.structs.FieldInfo) -> str:
    kind = _kind(field.type)
    if field.required:
        return f"{kind}, required"
    default = field.default
    if isinstance(default, Draw):
        return f"{kind}; {default.said}"
    if isinstance(default, float) and default.is_integer():
        return f"{kind}; {default:g}"
    plain = default is not msgspec.NODEFAULT and not isinstance(default, msgspec.Struct | tuple) and default is not None
    return f"{kind}; {default!r}" if plain else kind


def _kind(wanted: Any) -> str:
    if wanted is Draw:
        return FORMS
    if wanted is model.Seconds:
        return "a duration, such as 30 or '30s'"
    text = inspect.formatannotation(wanted).replace("shoal_loadtest.scenario.model.", "").replace("typing.", "")
    text = re.sub(r"Optional\[(.*)\]", r"\1", text).replace(" | None", "").replace("Literal", "one of ")
    text = re.sub(r"Annotated\[(\w+), (?:msgspec\.)?Meta\((.*?)\)\]", lambda m: f"{m[1]}{_bounds(m[2])}", text)
    return re.sub(r"tuple\[(.*), \.\.\.\]", r"a list of \1", text)


def _bounds(text: str) -> str:
    words = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    pairs = [part.partition("=")[::2] for part in text.split(", ")]
    return "".join(f" {words[name]} {value}" for name, value in pairs)
