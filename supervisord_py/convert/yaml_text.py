"""YAML, where somebody has installed a reader of it."""

from typing import Any

from supervisord_py.convert.draft import ConvertError

_DEPTH = 50


def load_yaml(text: str, path: str) -> Any:
    """Read a YAML document: mappings, lists, strings, numbers, booleans and nothing else.

    Raises:
        ConvertError: There is no reader of YAML here, or the text is none.
    """
    try:
        import yaml
    except ImportError:
        raise ConvertError(
            f"{path}: this is YAML, and no reader of YAML is installed: pip install 'supervisord-py[yaml]'"
        ) from None
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else path
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConvertError(f"{place}: no YAML: {problem}") from None
    _refuse_deep(document, path)
    return document


def _refuse_deep(value: Any, path: str, depth: int = 0) -> None:
    """Refuse what is nested without end: an alias may hold itself."""
    if depth > _DEPTH:
        raise ConvertError(f"{path}: nested too deeply, or within itself")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _refuse_deep(each, path, depth + 1)
