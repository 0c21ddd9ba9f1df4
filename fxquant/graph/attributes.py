"""Generated code that reads a graph's tensors from the modules' own dicts.

Every `self.a.b.weight` of plain generated code costs a call of nn.Module.__getattr__ a step: of a small batch through a
lowered encoder that was a sixth of the time. Here a path is walked once for all that lies below it.
"""

import ast
import re
from collections.abc import Iterator, Sequence

Path = tuple[str, ...]  # names from a graph on

ATTRIBUTE = re.compile(r"(\w+)(?: : [^=]+)? = (self\..+|getattr\(.+)")


def read_directly(body: list[str], first: Sequence[str] = ()) -> list[str]:
    """Return the lines of a generated forward with every read of an attribute moved to the top and made cheap.

    Under torch.compile the reads stay as they were: it takes attributes for what they are, and traces them once. Where
    it does not trace, the lines `first` come before them.
    """
    found = {index: read for index, line in enumerate(body) if (read := _read(line))}
    if not found and not first:
        return body
    plain = [f"        {body[index].rstrip()}\n" for index in found] or ["        pass\n"]
    direct = [f"        {line}\n" for line in (*first, *_walk(dict(found.values())))]
    rest = ["pass" if index in found else line for index, line in enumerate(body)]
    return ["if torch.compiler.is_compiling():\n", *plain, "else:\n", *direct, *rest]


def _read(line: str) -> tuple[str, Path] | None:
    """Return the name and the path of the attribute that a line assigns to it."""
    match = ATTRIBUTE.fullmatch(line.rstrip())
    path = path_of(ast.parse(match[2], mode="eval").body) if match else None
    return (match[1], path) if match and path else None


def path_of(value: ast.expr) -> Path | None:
    """Return the names from `self` on of self.a.b, or of getattr(self.a, "0"); None of anything else."""
    match value:
        case ast.Name(id="self"):
            return ()
        case ast.Attribute(value=holder, attr=name):
            return None if (above := path_of(holder)) is None else (*above, name)
        case ast.Call(func=ast.Name(id="getattr"), args=[holder, ast.Constant(value=str(name))]):
            return None if (above := path_of(holder)) is None else (*above, name)
    return None


def _walk(reads: dict[str, Path]) -> Iterator[str]:
    """Yield lines that assign every path, each module on the way and its two dicts fetched once."""
    modules: dict[Path, str] = {(): "self"}
    opened: set[str] = set()
    for name, (*holders, leaf) in reads.items():
        for depth in range(1, len(holders) + 1):
            path = tuple(holders[:depth])
            if path not in modules:
                modules[path] = f"_module_{len(modules)}"
                yield f"{modules[path]} = {modules[path[:-1]]}._modules[{path[-1]!r}]"
        holder = modules[tuple(holders)]
        buffers, parameters = f"_buffers_of{holder}", f"_parameters_of{holder}"
        if holder not in opened:
            opened.add(holder)
            yield f"{buffers} = {holder}._buffers; {parameters} = {holder}._parameters"
        yield (
            f"{name} = {buffers}[{leaf!r}] if {leaf!r} in {buffers} else "
            f"{parameters}[{leaf!r}] if {leaf!r} in {parameters} else getattr({holder}, {leaf!r})"
        )
