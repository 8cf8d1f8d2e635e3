"""Boards that have seen calls before."""

from __future__ import annotations

from scalesim.order.board import CallBoard


def board_where_prompts_go_on() -> CallBoard:
    """A board that has seen a prompt go on from the end of its agent's last one."""
    board = CallBoard()
    for _ in range(2):
        board.begin("call", "somebody")
        board.used("call", ["said"])
        board.end("call")
    board.forget(["somebody"])
    return board
