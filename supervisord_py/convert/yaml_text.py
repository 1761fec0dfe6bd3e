"""YAML, where somebody has installed a reader of it."""

from typing import Any

from supervisord_py.convert.draft import ConvertError

_DEPTH = 50
_NODES = 200_000


def load_yaml(text: str, path: str) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """Read a YAML document: mappings, lists, strings, numbers, booleans and nothing else.

    Returns:
        The document, and the lines of its values by their paths.

    Raises:
        ConvertError: There is no reader of YAML here, or the text is none.
    """
    try:
        import yaml
    except ImportError:
        raise ConvertError(
            f"{path}: this is YAML, and no reader of YAML is installed: pip install 'supervisord-py[yaml]'"
        ) from None
    lines: dict[tuple[str | int, ...], int] = {}

    def note(node: Any, at: tuple[str | int, ...]) -> None:
        lines.setdefault(at, node.start_mark.line + 1)
        if len(at) > _DEPTH or len(lines) > _NODES:
            raise ConvertError(f"{path}: nested too deeply, within itself, or too large")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    lines.setdefault((*at, key.value), key.start_mark.line + 1)
                    note(value, (*at, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                note(value, (*at, index))

    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, {}
            note(node, ())
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else path
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConvertError(f"{place}: no YAML: {problem}") from None
