"""A view as a notebook's widget. Only this file needs anywidget."""

from __future__ import annotations

from typing import Any

import anywidget

from augfpn.errors import UserError
from augfpn.visuals.interactive.view import View, module


class ViewWidget(anywidget.AnyWidget):
    """Sends a view's answers to the module."""

    _esm = module()

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.on_msg(self._answer)

    def changed(self) -> None:
        """Has the module ask for everything again."""
        self.send({"changed": True})

    def _answer(self, _: Any, content: Any, buffers: Any) -> None:
        number = content["number"]
        try:
            self.send({"number": number, "answer": self.view.answer(content["request"])})
        except UserError as error:
            self.send({"number": number, "error": str(error)})
        except Exception as error:
            # The reader would wait for ever; the traceback is in the notebook's log.
            self.send({"number": number, "error": f"{type(error).__name__}: {error}"})
            raise
