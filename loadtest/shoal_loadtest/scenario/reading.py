"""From files and options to a scenario: what is shipped, what it is based on, what was set, how much of it."""

import difflib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.wire.quantities import BadValueError, parse_seconds
from shoal_loadtest.scenario import model
from shoal_loadtest.scenario.checking import check
from shoal_loadtest.scenario.draw import Draw
from shoal_loadtest.scenario.model import Phase, Scenario, Seconds

_SHIPPED: Final = "shoal_loadtest.scenario.shipped"
_NAMED: Final = ("phase", "tenant", "template")
_MOST_BASES: Final = 5
Document = dict[str, Any]


def shipped() -> list[str]:
    """Return the names of the scenarios that come with Shoal."""
    return sorted(entry.name[:-5] for entry in resources.files(_SHIPPED).iterdir() if entry.name.endswith(".toml"))


def document(what: str, settings: Sequence[str] = ()) -> Document:
    """Return a scenario, a shipped one's name or a file's path, with what it is based on and these `key=value`.

    Raises BadValueError.
    """
    pairs = [_pair(setting) for setting in settings]
    found = _read(what)
    for key, value in pairs:
        if key == "base":
            found["base"] = value
    for _ in range(_MOST_BASES):
        if not found.get("base"):
            break
        below = _read(str(found.pop("base")))
        found = _merged(below, found)
    else:
        raise BadValueError("base", f"more than {_MOST_BASES} scenarios stand on each other; is it a circle?")
    for key, value in pairs:
        if key != "base":
            _set(found, key.split("."), key, value)
    return found


def scenario(found: Document, scale: float = 1.0) -> Scenario:
    """Return the scenario that a document says, of it so much. Raises BadValueError, which names the field."""
    if not 0 < scale <= 1000:
        raise BadValueError("scale", f"{scale:g} is not a number above 0 and up to 1000, such as 0.1")
    try:
        made = msgspec.convert(found, type=Scenario, dec_hook=_convert)
    except msgspec.ValidationError as error:
        raise _explained(str(error), found) from error
    check(made)
    return made if scale == 1 else scaled(made, scale)


def scaled(whole: Scenario, by: float) -> Scenario:
    """Return a scenario with so much of the sandboxes, the commands and the time, at the same rates and sizes."""
    return msgspec.structs.replace(whole, phases=tuple(_scaled(phase, by) for phase in whole.phases))


def _scaled(phase: Phase, by: float) -> Phase:
    def times(count: int | None) -> int | None:
        return None if count is None else max(round(count * by), 1)

    commands = phase.commands
    if commands is not None:
        commands = msgspec.structs.replace(commands, total=times(commands.total))
    seconds = None if phase.seconds is None else Seconds(max(phase.seconds * by, min(1.0, phase.seconds)))
    return msgspec.structs.replace(
        phase, sandboxes=times(phase.sandboxes), live=times(phase.live), seconds=seconds, commands=commands
    )


def text_of(what: str) -> str:
    """Return a scenario's file as it is written. Raises BadValueError."""
    if what in shipped():
        return resources.files(_SHIPPED).joinpath(f"{what}.toml").read_text()
    path = Path(what)
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        names = ", ".join(shipped())
        raise BadValueError("scenario", f"cannot read {what} ({reason}); name a file, or one of {names}") from error


def _read(what: str) -> Document:
    try:
        return tomllib.loads(text_of(what))
    except tomllib.TOMLDecodeError as error:
        raise BadValueError("scenario", f"{what} is no TOML: {error}") from error


def _merged(below: Document, above: Document) -> Document:
    found = dict(below)
    for key, value in above.items():
        known = found.get(key)
        found[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return found


def _pair(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise BadValueError("set", f"{setting!r} sets nothing; write key=value, such as fleet.nodes=100")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text  # a word needs no quotes


def _set(found: Document, path: list[str], key: str, value: Any) -> None:
    name, *rest = path
    if not rest:
        found[name] = value
        return
    below = found.setdefault(name, {})
    if isinstance(below, list) and rest:
        entry, rest = _entry(below, name, rest, key), rest[1:]
        if not rest:
            raise BadValueError("set", f"{key} is a whole table; name one of its keys")
        _set(entry, rest, key, value)
    elif isinstance(below, dict):
        _set(below, rest, key, value)
    else:
        raise BadValueError("set", f"{key}: {name} is a value, not a table")


def _entry(entries: list[Any], name: str, rest: list[str], key: str) -> Document:
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and rest[0] in (str(number), entry.get("name")):
            return entry
    known = ", ".join(str(entry.get("name", number)) for number, entry in enumerate(entries))
    raise BadValueError("set", f"{key}: there is no {name} {rest[0]!r}; there are {known}")


def _convert(wanted: type, value: Any) -> Any:
    if wanted is Draw:
        return Draw(value)
    if wanted is Seconds:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{value!r} is not a duration, such as 30s or 5m")
        try:
            return Seconds(parse_seconds(value))
        except BadValueError as error:
            raise ValueError(error.problem) from error
    raise NotImplementedError


def _explained(text: str, found: Document) -> BadValueError:
    """Return msgspec's words as one sentence that names the field as the file does."""
    problem, _, path = text.partition(" - at ")
    names: list[str] = []
    here: Any = found
    for step in path.strip("`").removeprefix("$").replace("[", ".[").split("."):
        if step.startswith("[") and step != "[...]":
            number = int(step[1:-1])
            here = here[number] if isinstance(here, list) and number < len(here) else None
            names.append(str(here.get("name", number)) if isinstance(here, dict) else str(number))
        elif step and step != "[...]":
            here = here.get(step) if isinstance(here, dict) else None
            names.append(step)
    if problem.startswith("Object contains unknown field "):
        unknown = problem.split("`")[1]
        close = difflib.get_close_matches(unknown, sorted(_known()), 1)
        hint = f"; did you mean {close[0]}?" if close else "; `shoal loadtest show` tells what there is"
        return BadValueError(".".join([*names, unknown]), f"there is no such key{hint}")
    if problem.startswith("Object missing required field "):
        missing = problem.split("`")[1]
        return BadValueError(".".join([*names, missing]), "it is missing")
    said = problem[0].lower() + problem[1:].replace("`", "").replace(" | null", "").replace(" object", " a table")
    if said.startswith("invalid"):
        said += "; `shoal loadtest show` tells what there is"
    return BadValueError(".".join(names) or "scenario", said)


def _known() -> set[str]:
    parts = [each for each in vars(model).values() if isinstance(each, type) and issubclass(each, model.Part)]
    return {field.encode_name for part in parts for field in msgspec.structs.fields(part)}
