"""Slips: every place in the core where a plausible one can be made, and the ways of making it.

The mutation run (``mutation_run``) judges them.
"""

import ast
import copy
import importlib.abc
import importlib.machinery
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "supervisord_py" / "core"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
ENUMS = (ROOT / "supervisord_py" / "model" / "states.py", *sorted(CORE.glob("*.py")))


@dataclass(frozen=True)
class Mutant:
    """One slip: where, what, and how it is made."""

    module: str
    path: Path
    line: int
    where: str
    what: str
    place: tuple[object, ...] = field(repr=False)
    new: ast.AST = field(repr=False)
    text: str = field(repr=False)
    """The line as it stands there."""
    lines: range = field(repr=False)
    """The lines of the statement that is changed (of its head, if it holds others); one of them is executed by every
    check that can notice.
    """

    @property
    def source(self) -> str:
        """The module as it would be."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        _put(tree, self.place, self.new)
        return ast.unparse(ast.fix_missing_locations(tree))

    @property
    def name(self) -> str:
        """A name for this run alone."""
        return f"{self.path.name}/{'/'.join(map(str, self.place))}/{self.what}"

    @property
    def key(self) -> str:
        """A name that outlives a change of line numbers: two slips of one kind in a function differ by their lines."""
        return f"{self.path.name}: {self.where}: {self.what} | {self.text}"


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
}  # fmt: skip
A_TIME = 1_000_000
"""An integer from here on is a time, or part of one."""


def read_enums() -> dict[str, list[str]]:
    """Return the members of every enum that the core uses, by its name."""
    found: dict[str, list[str]] = {}
    for path in ENUMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Enum" for base in node.bases):
                members = [stmt.targets[0].id for stmt in node.body if _is_member(stmt)]  # type: ignore[attr-defined]
                found[node.name] = members
    return found


def _is_member(stmt: ast.stmt) -> bool:
    return isinstance(stmt, ast.Assign) and isinstance(stmt.targets[0], ast.Name)


class Planter(ast.NodeVisitor):
    """Finds every place for a slip in one module; each is told as a path into the tree and what would stand there."""

    def __init__(self, enums: dict[str, list[str]], given: frozenset[tuple[str, str]]) -> None:
        self.enums, self.given = enums, given
        self.places: list[tuple[int, str, str, list[object], ast.AST, range]] = []
        self._path: list[object] = []
        self._statement: ast.stmt | None = None
        self._scope: list[str] = []

    def plant(self, node: ast.AST, new: ast.AST, what: str) -> None:
        line = getattr(node, "lineno", 0)
        where = ".".join(self._scope) or "module"
        self.places.append((line, where, what, list(self._path), new, _lines(self._statement)))

    def visit(self, node: ast.AST) -> None:
        outer = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node
        super().visit(node)
        self._statement = outer

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            if isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, ast.AST):
                        self._path += [name, index]
                        self.visit(item)
                        del self._path[-2:]
            elif isinstance(value, ast.AST):
                self._path.append(name)
                self.visit(value)
                self._path.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = {getattr(base, "id", "") for base in node.bases}
        if "Enum" in bases:
            return
        self._scope.append(node.name)
        for index, item in enumerate(node.body):
            self._path += ["body", index]
            self.visit(item)
            del self._path[-2:]
        self._scope.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """A default that is never used is none."""
        if not self._scope or (self._scope[-1], ast.unparse(node.target)) not in self.given:
            self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """An assertion tells of a bug: without one nothing changes."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """What is raised is a refusal that tests look for, or a bug."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words for people."""

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test, "test")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test, "test")
        self.generic_visit(node)

    def _negate(self, test: ast.expr, name: str) -> None:
        if isinstance(test, ast.Compare) or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            return
        self._path.append(name)
        self.plant(test, ast.UnaryOp(ast.Not(), test), f"`{ast.unparse(test)}` negated")
        self._path.pop()

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, op in enumerate(node.ops):
            new = copy.deepcopy(node)
            new.ops[index] = COMPARISONS[type(op)]()
            self.plant(node, new, f"`{ast.unparse(node)}` -> `{ast.unparse(new)}`")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        new = copy.deepcopy(node)
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.plant(node, new, f"`{ast.unparse(node)}` -> `{ast.unparse(new)}`")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.plant(node, node.operand, f"`{ast.unparse(node)}` -> `{ast.unparse(node.operand)}`")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS:
            new = copy.deepcopy(node)
            new.op = OPERATORS[type(node.op)]()
            self.plant(node, new, f"`{ast.unparse(node)}` -> `{ast.unparse(new)}`")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.plant(node, ast.Constant(not node.value), f"{node.value} -> {not node.value}")
        elif isinstance(node.value, int):
            # Times are in nanoseconds: one more or less is none. One digit too many is a slip.
            other = node.value + 1 if node.value < A_TIME else node.value * 10
            self.plant(node, ast.Constant(other), f"{node.value} -> {other}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.attr in (members := self.enums.get(node.value.id, [])):
            other = members[(members.index(node.attr) + 1) % len(members)]
            if other != node.attr:
                new = ast.Attribute(node.value, other, node.ctx)
                self.plant(node, new, f"{ast.unparse(node)} -> {ast.unparse(new)}")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._scope and all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self.plant(node, ast.Pass(), f"without `{ast.unparse(node)}`")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.plant(node, ast.Pass(), "without `continue`")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self.plant(node, ast.Return(ast.Constant(None)), f"`{ast.unparse(node)}` -> `return None`")
        if node.value is None:
            self.plant(node, ast.Pass(), "without `return`")
        self.generic_visit(node)


def read_given() -> frozenset[tuple[str, str]]:
    """Return the fields of the core's values, by class, that are given wherever such a value is made: their defaults
    are never used, but as the form of a text that leaves them out (and that is read with the same default).
    """
    calls: dict[str, list[ast.Call]] = {}
    classes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "supervisord_py").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                calls.setdefault(ast.unparse(node.func).rpartition(".")[2], []).append(node)
            if isinstance(node, ast.ClassDef) and path.parent == CORE:
                fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
                classes[node.name] = [each.id for each in fields if isinstance(each, ast.Name)]
    return frozenset(
        (name, each)
        for name, fields in classes.items()
        for place, each in enumerate(fields)
        if calls.get(name) and all(_gives(call, each, place) for call in calls[name])
    )


def _gives(call: ast.Call, name: str, place: int) -> bool:
    if any(isinstance(each, ast.Starred) for each in call.args) or any(each.arg is None for each in call.keywords):
        return False
    return place < len(call.args) or any(each.arg == name for each in call.keywords)


def read_equivalent() -> dict[str, str]:
    """Return the slips that change nothing that anybody could see, each with the reason."""
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["group"]
    return {slip: " ".join(group["reason"].split()) for group in listed for slip in group["slips"]}


def find_mutants(path: Path, enums: dict[str, list[str]], given: frozenset[tuple[str, str]]) -> Iterator[Mutant]:
    """Yield every mutant of one module."""
    text = path.read_text(encoding="utf-8")
    tree, texts = ast.parse(text), text.splitlines()
    planter = Planter(enums, given)
    planter.visit(tree)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for line, where, what, place, new, lines in planter.places:
        yield Mutant(
            module, path, line, where, " ".join(what.split())[:160], tuple(place), new, texts[line - 1].strip(), lines
        )


def _lines(statement: ast.stmt | None) -> range:
    match statement:
        case None:
            return range(0)
        case ast.If(test=head) | ast.While(test=head) | ast.For(iter=head) | ast.Match(subject=head):
            last = head
        case ast.With(items=items):
            last = items[-1].context_expr
        case _:
            last = statement
    return range(statement.lineno, (last.end_lineno or last.lineno) + 1)


def _put(tree: ast.AST, place: tuple[object, ...], new: ast.AST) -> None:
    owner: object = tree
    for step in place[:-1]:
        owner = owner[step] if isinstance(step, int) else getattr(owner, str(step))  # type: ignore[index]
    last = place[-1]
    if isinstance(last, int):
        owner[last] = new  # type: ignore[index]
    else:
        setattr(owner, str(last), new)


# making one


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module from a text, as if its file said that."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self._source = mutant, mutant.source

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.mutant.path))

    def get_filename(self, fullname: str) -> str:
        return str(self.mutant.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self._source.encode()

    def get_code(self, fullname: str) -> object:
        return compile(self._source, str(self.mutant.path), "exec")


def exchange(mutant: Mutant) -> bool:
    """Put the changed code into the function that is loaded already; False if the slip is in no function's body."""
    owner: object = sys.modules.get(mutant.module)
    code = compile(mutant.source, str(mutant.path), "exec")
    if owner is None or {"defaults", "kw_defaults"} & set(mutant.place):
        return False
    for name in mutant.where.split("."):
        owner = vars(owner).get(name)
        found = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name]
        if isinstance(owner, classmethod | staticmethod):
            owner = owner.__func__
        if isinstance(owner, property):
            owner = owner.fget
        if not isinstance(owner, type | FunctionType) or len(found) != 1:
            return False
        code = found[0]
        if isinstance(owner, FunctionType):
            if code.co_freevars != owner.__code__.co_freevars:
                # The only super() of the function is what is left out.
                return False
            owner.__code__ = code
            return True
    return False
