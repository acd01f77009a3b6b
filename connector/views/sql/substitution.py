"""A variable's value in place of the variable: an operation on the tree, so no text or name is ever taken for one."""

from dataclasses import replace

from connector.views.sql.expressions import Expression, Lambda, Parameter

__all__ = ["substitute"]


def substitute(expression: Expression, parameter: Parameter, value: Expression) -> Expression:
    """``expression`` with ``value`` wherever ``parameter`` stands, except in a lambda that binds it. What is shared
    stays shared; no lambda of ``expression`` may bind a parameter that stands in ``value``."""
    changed: dict[int, Expression] = {id(parameter): value}
    pending = [expression]
    while pending:
        node = pending[-1]
        bound = isinstance(node, Lambda) and node.parameter is parameter
        waiting = [] if bound else [operand for operand in node.operands if id(operand) not in changed]
        if waiting:
            pending += waiting
            continue
        pending.pop()
        operands = node.operands if bound else tuple(changed[id(operand)] for operand in node.operands)
        same = all(new is old for new, old in zip(operands, node.operands, strict=True))
        changed.setdefault(id(node), node if same else replace(node, operands=operands))
    return changed[id(expression)]
